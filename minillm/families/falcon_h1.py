"""Llama, except: Mamba 2 stands beside attention in every layer, and both see the same x; constant factors multiply
embeddings, logits, keys, the inputs and outputs of both, the five parts of Mamba's first product, and the gate and
output of the MLP. The final norm and the feed-forward have other names.

Falcon-H1 0.5B to 34B (TII, 2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import Config, number
from minillm.families import bamba, llama
from minillm.families.recurrent import state_space
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Beside, Decoder, Embedding, Norm, Scores

FACTORS = ("lm_head_multiplier", "embedding_multiplier", "key_multiplier", "attention_out_multiplier",
           "attention_in_multiplier", "ssm_in_multiplier", "ssm_out_multiplier")  # fmt: skip
DEFAULTS = {
    **llama.DEFAULTS,
    **state_space.DEFAULTS,
    **dict.fromkeys(FACTORS, 1.0),
    "vocab_size": 128000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "mamba_d_ssm": 1024,
    "mamba_d_head": 8,
    "mamba_norm_before_gate": True,
    "mamba_rms_norm": False,
    "mlp_multipliers": None,
    "ssm_multipliers": None,
    "projectors_bias": False,
}
LAYER, OURS = bamba.LAYER, "layers.{i}.attention."
RULES = {
    **{
        pattern: to.replace(OURS, f"{OURS}attention.")
        for pattern, to in bamba.RULES.items()
        if ".mamba." not in pattern
    },
    **state_space.rules(f"{LAYER}mamba.", f"{OURS}recurrent."),
}


def spec(config: Config) -> Decoder:
    config.choice("hidden_act", {"silu": None, "swish": None})  # which the convolutions are followed by too
    head, embedding, key, out, into, ssm_in, ssm_out = (config.number(name) for name in FACTORS)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    if config.flag("attention_bias") or config.flag("mamba_proj_bias") or config.flag("projectors_bias"):
        raise ValueError("config.json: attention_bias, mamba_proj_bias and projectors_bias must be false, as published")
    # Of what attention is given: it multiplies q, k and v, that is scores twice and the sum over v once.
    scores = Scores(key * into**2 * head_dim**-0.5)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), scores=scores)
    normed, first = config.flag("mamba_rms_norm"), config.flag("mamba_norm_before_gate")
    if normed and first:
        raise ValueError("config.json: mamba_norm_before_gate is true; norms behind the gate work, or none")
    config.without_effect(("mamba_expand",))
    inner = config.optional_size("mamba_d_ssm") or int(config.number("mamba_expand") * config.size("hidden_size"))
    factors = tuple(ssm_in * each for each in _numbers(config, "ssm_multipliers", 5))
    norm = Norm(config.number("rms_norm_eps")) if normed else None
    mamba = state_space.mamba(config, norm, inner=inner, factors=factors)
    gate, down = _numbers(config, "mlp_multipliers", 2)
    mlp = replace(common.gated_mlp(config, "intermediate_size", config.flag("mlp_bias")), factors=(gate, down))
    layers = common.num_layers(config)
    made = common.decoder(config, [Beside(attention, mamba, (out * into, ssm_out))] * layers, [mlp] * layers)
    return replace(made, embedding=Embedding(embedding), logit_scale=head)


def _numbers(config: Config, key: str, count: int) -> list[float]:
    found: Any = config.get(key)
    if found is None:
        return [1.0] * count
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(f"config.json: {key} is {shown(found)}, expected {count} numbers")
    return [number(key, each) for each in found]
