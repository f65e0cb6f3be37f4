"""Llama, except: every layer is Mamba (a selective scan) and nothing else; there are no positions.

Mamba 130M to 2.8B in transformers' layout, kotomamba (state-spaces, 2023). transformers keeps the residual sum in fp32
if `residual_in_fp32` is true; here it has the model's dtype.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families.recurrent import selective
from minillm.families.shared import common
from minillm.spec import Decoder, Layer, Norm

KEYS = selective.Keys("expand", "state_size", "conv_kernel", "time_step_rank", "use_conv_bias", "use_bias")
DEFAULTS: dict[str, Any] = {
    **dict(zip(KEYS, selective.DEFAULTS.values(), strict=True)),
    "vocab_size": 50280,
    "intermediate_size": None,
    "hidden_size": 768,
    "num_hidden_layers": 32,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2**20,  # nothing ends anywhere
}
# What other keys were called before transformers, which does not read these.
EARLIER = ("d_inner", "d_model", "n_layer", "ssm_cfg", "rms_norm", "norm_epsilon")
RULES = {
    **dict.fromkeys(("backbone.embeddings.weight", "backbone.embedding.weight"), "embedding.weight"),
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "backbone.layers.{i}.norm.weight": "layers.{i}.attention_norm.weight",
    **selective.rules("backbone.layers.{i}.mixer."),
}


def spec(config: Config) -> Decoder:
    return alone(config, None)


def alone(config: Config, inside: Norm | None) -> Decoder:
    """Layers of nothing but a state space, with this norm inside."""
    norm = Norm(config.number("layer_norm_epsilon"))
    config.without_effect(EARLIER)
    mixer = selective.mamba(config, inside, KEYS, config.optional_size("intermediate_size"))
    return Decoder(
        config.size("vocab_size"),
        config.size("hidden_size"),
        (Layer(norm, mixer, None, None),) * common.num_layers(config),
        norm,
        config.flag("tie_word_embeddings"),
        config.positions("max_position_embeddings"),
    )
