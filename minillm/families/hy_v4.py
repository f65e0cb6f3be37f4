"""Llama, except: all that GLM-5 changes, in other sizes, where halves of a head turn, of an indexer's the last values;
what heads give goes through a gate, and each has a sink; gates of experts are clamped; there are four residual streams,
of which each part of a layer is given a learned mix, and to which it adds what it makes.

Hy4 (Tencent, 2026). Layers that predict further tokens are left out. The authors keep the head in fp32.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import glm4_moe_lite, glm_moe_dsa
from minillm.families.shared import common, experts, latent
from minillm.spec import MLA, ClampedSwiGLU, Decoder, Gate, HyperConnections, Layer, LayerNorm, MoE, Norm

FIXED = {"rope_interleave": False, "mlp_bias": False}
UNUSED = ("learnable_sink_init", "layer_types")  # where training starts, and what every layer is
DEFAULTS = {
    **glm4_moe_lite.DEFAULTS, **FIXED, **dict.fromkeys(UNUSED),
    "vocab_size": 120832, "hidden_size": 2816, "intermediate_size": 6912, "moe_intermediate_size": 768,
    "num_hidden_layers": 34, "num_attention_heads": 32, "max_position_embeddings": 262144, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "routed_scaling_factor": 2.827, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "num_nextn_predict_layers": 0, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 16,
    "indexer_types": None, "index_topk_pattern": None, "index_topk_freq": 4, "index_skip_topk_offset": 2,
    "hc_mult": 4, "hc_magnitude": 2.0, "hc_eps": 1e-6, "swiglu_limit": 10.0,
}  # fmt: skip
LAYER, OURS = "model.layers.{i}.", "layers.{i}."
MIXED = {"fn": "mix", "base": "shift", "scale": "scale"}
FORMS = ("hc_{}_layer.hc_", "hc_{}_layer.hc_pre.hc_", "hc_pre.hc_{}_layer.hc_")  # the last as transformers 5 writes it
STREAMS = {
    **{f"{LAYER}{form.format(part)}{leaf}": f"{OURS}{to}_mix.{own}" for form in FORMS
       for part, to in (("attn", "attention"), ("mlp", "ffn")) for leaf, own in MIXED.items()},
    **{f"model.{form}{leaf}": f"streams.{own}" for form in ("hc_head.hc_head_", "hc_pre.hc_head.hc_head_")
       for leaf, own in MIXED.items()},
}  # fmt: skip
TRANSFORMERS = {"linear_gate": "gate_proj"}
prediction_layers = experts.prediction_layers


def rules(config: Config) -> dict[str, str]:
    found = {**glm_moe_dsa.rules(config), **STREAMS, "model.mtp_layers.*": common.AHEAD}
    # transformers writes the gates of feed-forwards under the name of attention's too.
    found |= {name.replace("gate_proj", "linear_gate"): to for name, to in found.items()}
    return {**found, f"{latent.ATTENTION}linear_gate.weight": f"{OURS}attention.gate.weight",
            f"{latent.ATTENTION}learnable_sink_param": f"{OURS}attention.sinks"}  # fmt: skip


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(UNUSED)
    config.choice("hidden_act", {"silu": None})
    norm, limit = Norm(config.number("rms_norm_eps")), config.number("swiglu_limit")
    made = glm4_moe_lite.spec(config)
    lenders, eps = glm_moe_dsa.lenders(config), LayerNorm(norm.eps)
    made = latent.indexed(config, made, "half", lenders, eps, last=True)
    streams = HyperConnections(config.size("hc_mult", 64), Norm(norm.eps, affine=False), 0, config.number("hc_eps"),
                               most=config.number("hc_magnitude"))  # fmt: skip
    return replace(made, streams=streams, layers=tuple(_changed(each, limit) for each in made.layers))


def _changed(layer: Layer, limit: float) -> Layer:
    """With a gate and sinks; routed experts, but no shared ones, are clamped."""
    assert isinstance(layer.attention, MLA)
    ffn, attention = layer.ffn, replace(layer.attention, gate=Gate(sinks=True))
    if isinstance(ffn, MoE):
        ffn = replace(ffn, activation=ClampedSwiGLU(1.0, limit, 0.0))
    return replace(layer, attention=attention, ffn=ffn)
