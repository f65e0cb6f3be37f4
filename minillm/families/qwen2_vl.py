"""Llama, except: all that Qwen2 changes.

The text model of Qwen2-VL 2B, 7B, 72B (Wang et al., arXiv:2409.12191) and Qwen2.5-VL 3B, 7B, 32B, 72B
(arXiv:2502.13923): images are not read, and their tensors are left out. Published configs have the text model's values
at the top, beside `vision_config`; transformers 5 writes them into `text_config`.
"""

from __future__ import annotations

from minillm.families import qwen2
from minillm.families.shared import wrapped

DEFAULTS = {
    **qwen2.DEFAULTS,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_window_layers": 80,
}
RULES = wrapped.rules(qwen2.RULES)
inner, spec = wrapped.inner_of_text, qwen2.spec
