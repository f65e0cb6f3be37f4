"""Llama, except: every fourth layer turns nothing, so that nothing says there where a key lies; and the head is the
embedding, though published files do not say so.

SmolLM3-3B (Hugging Face, 2025). `no_rope_layers` has a 1 for each layer that turns, and a 0 for the others.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "layer_types": None,
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    config.without_effect(["max_window_layers"])
    num_heads, num_kv_heads, head_dim = common.heads(config)
    layers, every, slides = common.num_layers(config), config.size("no_rope_layer_interval"), common.window(config)
    turns = common.flags(config, "no_rope_layers", [(i + 1) % every != 0 for i in range(layers)])
    seldom = config.flag("use_sliding_window")
    windows = common.typed_windows(config, slides, [seldom and not each for each in turns])
    rope, bias = rotary.rope(config, head_dim), config.flag("attention_bias")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)
    mixers = common.in_layers(attention, windows, [rope if each else None for each in turns])
    return common.dense(config, mixers, mlp_bias=config.flag("mlp_bias"))
