"""Llama, except: every layer is Mamba 2, a state space, and nothing else; there are no positions.

Mamba 2, 130M to 2.7B in transformers' layout, Codestral Mamba 7B (state-spaces and Mistral AI, 2024). transformers
keeps the residual sum in fp32 if `residual_in_fp32` is true; here it has the model's dtype.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families.recurrent import state_space
from minillm.families.shared import common
from minillm.spec import Decoder, Layer, Norm

KEYS = state_space.Keys("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel", "use_conv_bias", "use_bias")
DEFAULTS: dict[str, Any] = {
    **dict(zip(KEYS, (128, 64, 8, 128, 4, True, False), strict=True)),
    "vocab_size": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "expand": 2,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "time_step_limit": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2**20,  # nothing ends anywhere
}
RULES = {
    **dict.fromkeys(("backbone.embeddings.weight", "backbone.embedding.weight"), "embedding.weight"),
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "backbone.layers.{i}.norm.weight": "layers.{i}.attention_norm.weight",
    **state_space.rules("backbone.layers.{i}.mixer."),
}


def spec(config: Config) -> Decoder:
    config.choice("hidden_act", {"silu": None, "swish": None})
    norm, hidden = Norm(config.number("layer_norm_epsilon")), config.size("hidden_size")
    mixer = state_space.mamba(config, norm, KEYS, int(config.number("expand") * hidden))
    return Decoder(
        config.size("vocab_size"),
        hidden,
        (Layer(norm, mixer, None, None),) * common.num_layers(config),
        norm,
        config.flag("tie_word_embeddings"),
        config.positions("max_position_embeddings"),
    )
