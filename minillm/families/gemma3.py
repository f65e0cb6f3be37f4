"""Llama, except: all that Gemma 2 changes but the caps; each head of q and k is normalised; five layers with a window,
then one without, and the two kinds have rotary embeddings of their own, of which only the latter's is scaled.

Gemma 3 270M, 1B, 4B, 12B, 27B (arXiv:2503.19786), the text model: images are not read, and their tensors are left out.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import gemma, gemma2
from minillm.families.shared import common, rotary, wrapped
from minillm.spec import Decoder, QKNorm

DEFAULTS = {
    **gemma2.DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "_sliding_window_pattern": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
TEXT_RULES = {**gemma2.RULES, **common.QK_NORM_RULES}
RULES = wrapped.rules(TEXT_RULES)
TRANSFORMERS = wrapped.TRANSFORMERS
inner = wrapped.inner


def spec(config: Config) -> Decoder:
    if (cap := config.get("attn_logit_softcapping")) is not None:
        raise ValueError(f"config.json: attn_logit_softcapping is {cap!r}; this family normalises q and k instead")
    patterns = [config.get(key) for key in ("_sliding_window_pattern", "sliding_window_pattern")]
    key = "sliding_window_pattern" if patterns[0] is None else "_sliding_window_pattern"
    every = config.size(key)
    sliding = [(i + 1) % every != 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    ropes = rotary.by_window(config, common.heads(config)[2], windows, config.get("rope_local_base_freq"))
    return gemma2.decoder(config, windows, ropes, QKNorm(gemma.norm(config)))
