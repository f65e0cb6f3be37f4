"""Llama, except: norms stand behind attention and MLP, before the residual, and none in front; each head of q and k is
normalised.

EXAONE 4.0 1.2B (LG AI Research, arXiv:2507.11407). The 32B, where layers with a window turn and others do not, is
refused.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama, olmo2
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Norm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": None,
    "layer_types": None,
}
RULES = olmo2.RULES


def spec(config: Config) -> Decoder:
    if window := common.window(config):
        raise ValueError(f"config.json: sliding_window is {shown(window)}; layers without positions are not supported")
    layers = common.num_layers(config)
    common.typed_windows(config, None, [False] * layers)
    config.get("sliding_window_pattern")  # without effect where there is no window
    num_heads, num_kv_heads, head_dim = common.heads(config)
    norm = Norm(config.number("rms_norm_eps"))
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), qk_norm=QKNorm(norm))
    made = common.dense(config, [attention] * layers)
    return common.every_layer(made, attention_norm=None, ffn_norm=None, post_attention_norm=norm, post_ffn_norm=norm)
