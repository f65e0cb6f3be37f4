"""Llama, except: norms with weights around zero, of each head of q and k too; three of four layers have a window, more
heads and a rotary embedding of their own; each head's output is multiplied by a sigmoid gate; after three dense layers
come mixtures whose sigmoid scores get a correction bias for the choice only; in the last layers SwiGLU is clamped.

Step-3.5-Flash, 196B with 11B active, and the text model of Step-3.7-Flash (StepFun, 2026). Lists of layers include the
multi-token prediction layers, which are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, number
from minillm.families import llama
from minillm.families.recurrent import hybrid
from minillm.families.shared import by_layer, common, experts, rotary, wrapped
from minillm.guard.screen import shown
from minillm.spec import GQA, CappedSwiGLU, Decoder, Gate, GatedMLP, Gating, MoE, QKNorm, Scores

FIXED = {"gating": True, "use_bidirectional_attention": False, "scoring_func": "sigmoid", "n_shared_experts": 1,
         "use_moe_router_bias": True}  # fmt: skip
UNUSED = ("mtp_layer_types", "mtp_mlp_layer_types", "first_k_dense_replace", "projector_bias")
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("rope_theta", "rope_scaling")},
    **FIXED, **dict.fromkeys((*by_layer.LISTS, *UNUSED, "num_sliding_attention_heads", "per_layer_config")),
    "vocab_size": 128815, "hidden_size": 4096, "intermediate_size": 11264, "num_hidden_layers": 45,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-5, "sliding_window": None, "num_experts_per_tok": 8, "n_routed_experts": 288,
    "moe_intermediate_size": 1280, "share_expert_dim": 1280, "moe_router_scaling_factor": 1.0,
    "query_pre_attn_scalar": None, "num_nextn_predict_layers": 0, "num_mtp_layers": None,
}  # fmt: skip
LAYER, FFN = "model.layers.{i}.", "layers.{i}.ffn."
TEXT_RULES = {
    **common.DENSE_RULES, **common.QK_NORM_RULES, **common.MOE_RULES,
    **{name.replace(".mlp.", ".share_expert."): to.replace(".ffn.", ".ffn.shared.")
       for name, to in common.DENSE_RULES.items() if ".mlp." in name},
    f"{LAYER}self_attn.g_proj.weight": "layers.{i}.attention.gate.weight",
    f"{LAYER}moe.gate.weight": f"{FFN}router.weight",
    f"{LAYER}moe.router_bias": f"{FFN}router.bias",
    **{f"{LAYER}moe.{{e}}.{part}_proj.weight": f"{FFN}experts.gate_up[{{e}}.{part}]" for part in ("gate", "up")},
    f"{LAYER}moe.down_proj.weight": f"{FFN}experts.down",
}  # fmt: skip
TRANSFORMERS = {"share_expert.": "mlp.shared_experts."}


def rules(config: Config) -> dict[str, str]:
    ahead = {f"{layer}*": common.AHEAD for layer in experts.prediction_layers(config)}
    return {**ahead, **wrapped.rules(TEXT_RULES, ("vision_model", "vit_large_projector", "multi_modal_projector"))}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    return by_layer.named(wrapped.inner(values))


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect((*UNUSED, *by_layer.READ))
    layers, bias = common.num_layers(config), config.flag("attention_bias")
    windows = common.typed_windows(config, common.window(config), [False] * layers)
    (num_heads, kv_heads, head_dim), more = common.heads(config), config.optional_size("num_sliding_attention_heads")
    if (more := more or num_heads) % kv_heads:
        raise ValueError(f"config.json: {more} heads of layers with a window are no multiple of {kv_heads} kv heads")
    by_layer.check(config, "num_attention_heads", [more if window else num_heads for window in windows], num_heads)
    norm, kinds = hybrid.norm(config), [by_layer.KINDS[each is not None] for each in windows]
    scale = (config.optional_size("query_pre_attn_scalar") or head_dim) ** -0.5
    ropes = rotary.by_kind(config, head_dim, dict.fromkeys(kinds, by_layer.THETA), 1.0)
    mixers = [
        GQA(more if window else num_heads, kv_heads, head_dim, ropes[kind], window, bias, bias, QKNorm(norm),
            scores=Scores(scale), weakened=Gate(width="head"))
        for kind, window in zip(kinds, windows, strict=True)
    ]  # fmt: skip
    router = common.router(config, "n_routed_experts", score="sigmoid", renormalize=True, bias=True,
                           scale=config.number("moe_router_scaling_factor"))  # fmt: skip
    shared, inner_size, mlp_bias = *map(config.size, ("share_expert_dim", "intermediate_size")), config.flag("mlp_bias")
    width, ffn, first = config.size("moe_intermediate_size"), [], [i >= 3 for i in range(layers)]
    for i, (own, other) in enumerate(zip(*(_caps(config, key) for key in by_layer.LISTS[2:]), strict=True)):
        moe = MoE(router, width, own, GatedMLP(shared, other, mlp_bias))
        ffn.append(common.typed_layers(config, moe, GatedMLP(inner_size, other, mlp_bias), first)[i])
    return common.decoder(config, mixers, ffn, norm)


def _caps(config: Config, key: str) -> list[Gating]:
    """What each layer has for act(gate) * up: SwiGLU, clamped where a limit is stated that is not 0."""
    config.choice("hidden_act", {"silu": None})
    layers = common.num_layers(config)
    if not isinstance(listed := config.get(key) or [0] * layers, list) or len(listed) != layers:
        raise ValueError(f"config.json: {key} is {shown(listed)}, expected a number for each layer")
    return [CappedSwiGLU(number(key, each)) if each else "silu" for each in listed]
