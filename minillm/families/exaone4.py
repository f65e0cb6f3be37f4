"""Llama, except: norms stand behind attention and MLP, before the residual, and none in front; each head of q and k is
normalised.

EXAONE 4.0 1.2B and 32B (LG AI Research, arXiv:2507.11407). In the 32B three of four layers have a window; the fourth
turns nothing.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama, olmo2
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Norm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
}
RULES = olmo2.RULES


def spec(config: Config) -> Decoder:
    made, norm = common.dense(config, mixers(config)), Norm(config.number("rms_norm_eps"))
    return common.every_layer(made, attention_norm=None, ffn_norm=None, post_attention_norm=norm, post_ffn_norm=norm)


def mixers(config: Config) -> list[GQA]:
    layers, window, span = common.num_layers(config), common.window(config), _span(config)
    windows = common.typed_windows(config, window, [window is not None and (i + 1) % span != 0 for i in range(layers)])
    num_heads, num_kv_heads, head_dim = common.heads(config)
    norm = Norm(config.number("rms_norm_eps"))
    rope = rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qk_norm=QKNorm(norm))
    ropes = [rope if each or window is None else None for each in windows]
    return common.in_layers(attention, windows, ropes)


def _span(config: Config) -> int:
    """How many layers there are to one that sees everything: a number, or a letter for each, L with a window."""
    stated = config.get("sliding_window_pattern")
    if isinstance(stated, str) and stated and stated == "L" * (len(stated) - 1) + "G":
        return len(stated)
    return config.size("sliding_window_pattern") if stated else common.MAX_LAYERS + 1
