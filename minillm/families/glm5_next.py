"""Llama, except: four residual streams, mixed around each part of a layer (hyper-connections), which end as their mean;
three of four layers are Kimi Delta Attention with a bound; the fourth has latent attention without positions; after the
first layers come DeepSeek-V3's mixtures; gates are clamped.

GLM-5.3-Flash (Z.ai, 2026), without the image encoder. In the attention layers an indexer chooses blocks of 16 keys for
each query, which up to 2048 positions are all blocks. So here the context ends there, and the indexers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families import kimi_linear
from minillm.families.recurrent import channels
from minillm.families.shared import common, experts, wrapped
from minillm.guard.screen import shown
from minillm.spec import MLA, ClampedSwiGLU, Decoder, GatedMLP, HyperConnections, MoE, Norm, Unturned

FIXED = {"qk_rope_head_dim": 0, "index_kpool_always_select_tail": True, "moe_layer_freq": 1}
UNUSED = ("indexer_types", "index_head_dim", "index_n_heads", "index_kpool", "index_topk_freq", "qk_head_dim",
          "index_skip_topk_offset", "index_topk_pattern", "head_dim", "first_k_dense_replace")  # fmt: skip
DEFAULTS = {
    **kimi_linear.DEFAULTS, **FIXED, **dict.fromkeys(UNUSED),
    "vocab_size": 154880, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 45,
    "num_attention_heads": 64, "q_lora_rank": 1536, "qk_nope_head_dim": 256, "v_head_dim": 256,
    "moe_intermediate_size": 2048, "n_routed_experts": 288, "routed_scaling_factor": 2.5, "index_topk": 2048,
    "linear_num_heads": 64, "linear_lower_bound": -5.0, "swiglu_limit": 10.0, "hc_mult": 4, "hc_eps": 1e-6,
    "hc_sinkhorn_iters": 20,
}  # fmt: skip
LAYER, ATTENTION = kimi_linear.LAYER, kimi_linear.ATTENTION
CHOICE = "DROP: what chooses keys in long texts, which are not read"
OWN = {**kimi_linear.OWN, "gate_lower_bound": "linear_lower_bound"}
MIXED = {"fn": "mix", "base": "shift", "scale": "scale"}
TRANSFORMERS = {"self_attn.f_": "self_attn.forget_gate.f_"}
prediction_layers = experts.prediction_layers


def rules(config: Config) -> dict[str, str]:
    plain = {name: to for name, to in common.DENSE_RULES.items() if not name.startswith(ATTENTION)}
    found = {
        **experts.with_mixtures(config, plain), **channels.rules(ATTENTION, _full(config)), **kimi_linear.GATES,
        f"{ATTENTION}A_log": f"{channels.MIXER}decay", f"{ATTENTION}indexer.*": CHOICE,
        **{f"{LAYER}hc_{part}_{leaf}": f"layers.{{i}}.{to}_mix.{own}"
           for part, to in (("attn", "attention"), ("ffn", "ffn")) for leaf, own in MIXED.items()},
    }  # fmt: skip
    return wrapped.rules(found, ("visual", "vision_tower"))


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in wrapped.inner(values).items() if not key.startswith(("image_", "video_"))}
    if isinstance(section := made.pop("linear_attn_config", None), dict):
        if odd := sorted({*section} - {*OWN, *kimi_linear.LISTS, "safe_gate"}):
            raise ValueError(f"config.json: linear_attn_config has {shown(odd[0])}, which this family's code lacks")
        made |= {to: section[name] for name, to in OWN.items() if name in section}
        if section.get("safe_gate", True) and made.get("linear_lower_bound") is None:
            made["linear_lower_bound"] = DEFAULTS["linear_lower_bound"]
    if isinstance(kinds := made.get("layer_types"), list):
        made["layer_types"] = ["full_attention" if each == "indexed_attention" else each for each in kinds]
    return made


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect((*UNUSED, *kimi_linear.UNUSED))
    config.choice("hidden_act", {"silu": None})
    heads, bias = config.size("num_attention_heads"), config.flag("attention_bias")
    norm = Norm(config.number("rms_norm_eps"))
    config.derived("num_key_value_heads", {heads})
    attention = MLA(heads, config.size("q_lora_rank"), config.size("kv_lora_rank"), config.size("qk_nope_head_dim"),
                    config.size("v_head_dim"), Unturned(0), norm, bias=bias)  # fmt: skip
    own, size, kernel = (config.size(key) for key in kimi_linear.SIZES)
    bound = config.get("linear_lower_bound")
    if bound is not None and not (isinstance(bound, (int, float)) and -1e3 <= bound < 0):
        raise ValueError(f"config.json: linear_lower_bound is {shown(bound)}, expected a number from -1000 to below 0")
    delta, full = channels.delta(config, (own, size, kernel), size, bound), _full(config)
    clamped = ClampedSwiGLU(1.0, config.number("swiglu_limit"), 0.0)
    dense = GatedMLP(config.size("intermediate_size"), clamped)
    moe = experts.mixture(config, experts.grouped(config, "n_routed_experts"), dense)
    ffn: list[GatedMLP | MoE] = common.typed_layers(config, moe, dense, [i >= 3 for i in range(len(full))])
    streams = HyperConnections(config.size("hc_mult", 64), Norm(norm.eps, affine=False),
                               config.size("hc_sinkhorn_iters", 1000), config.number("hc_eps"), mean=True)  # fmt: skip
    made = common.decoder(config, [attention if each else delta for each in full], ffn)
    return replace(made, streams=streams, context=min(made.context, config.size("index_topk")))


def _full(config: Config) -> list[bool]:
    return channels.full(config, [i % 4 == 3 for i in range(common.num_layers(config))])
