"""Llama, except: three of four layers are Kimi Delta Attention, which forgets each value of a key at its own rate; the
others have latent attention without positions; after the first layer come DeepSeek-V3's mixtures.

Kimi-Linear-48B-A3B (Moonshot AI, arXiv:2510.26692). Lists of layers in published files count from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families import llama, mixtral
from minillm.families.recurrent import channels
from minillm.families.shared import common, experts, latent
from minillm.spec import Decoder, Rope, Unturned

FIXED = {"moe_layer_freq": 1, "mla_use_nope": True, "moe_router_activation_func": "sigmoid"}
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"},
    **FIXED, **experts.GROUPED, **dict.fromkeys(("layer_types", "mlp_layer_types", "qk_head_dim")),
    "vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 27,
    "num_attention_heads": 32, "max_position_embeddings": 1048576, "rms_norm_eps": 1e-5, "kv_lora_rank": 512,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "moe_intermediate_size": 1024, "num_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "routed_scaling_factor": 2.446, "first_k_dense_replace": 1, "use_grouped_topk": None,
    "linear_head_dim": 128, "linear_num_heads": 32, "linear_conv_kernel_dim": 4,
    "num_nextn_predict_layers": 0, "num_mtp_layers": None,
}  # fmt: skip
UNUSED = ("use_grouped_topk", "rope_theta", "rope_scaling", "rope_parameters", "linear_attn_config")
SIZES = ("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim")
LAYER, ATTENTION = "model.layers.{i}.", "model.layers.{i}.self_attn."
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"block_sparse_moe.": "mlp.", "self_attn.f_": "self_attn.forget_gate.f_"}
OWN = {"num_heads": SIZES[0], "head_dim": SIZES[1], "short_conv_kernel_size": SIZES[2]}
GATES = {
    **{f"{ATTENTION}{name}_a_proj.weight": f"{channels.MIXER}qkvfzb.weight[{part}]" for part, name in ("ff", "zg")},
    **{f"{ATTENTION}{name}_b_proj.weight": f"{channels.MIXER}{part}.weight" for part, name in ("ff", "zg")},
}
LISTS = ("full_attn_layers", "kda_layers")
MIXER, FFN = channels.MIXER, "layers.{i}.ffn."


def rules(config: Config) -> dict[str, str]:
    plain = {name: to for name, to in common.DENSE_RULES.items() if not name.startswith(ATTENTION)}
    return {
        **plain,
        **mixtral.RULES,
        # transformers 5.23 writes the dense layer's so too
        **{name.replace(".mlp.", ".block_sparse_moe."): to for name, to in plain.items() if ".mlp." in name},
        **common.shared_expert(f"{LAYER}block_sparse_moe.shared_experts."),
        f"{LAYER}block_sparse_moe.gate.e_score_correction_bias": f"{FFN}router.bias",
        **channels.rules(ATTENTION, _full(config)),
        **GATES,
        f"{ATTENTION}A_log": f"{MIXER}decay: 1 1 h 1 -> h",
    }


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """What published files say of layers that forget, in transformers' words; `head_dim` is no size of this model."""
    made = channels.named(values)
    made.pop("head_dim", None)
    section = made.pop("linear_attn_config", None)
    section = section if isinstance(section, dict) else {}
    if odd := sorted({*section} - {*OWN, *LISTS}):
        raise ValueError(f"config.json: linear_attn_config has {', '.join(odd)[:80]}, which this family's code lacks")
    made |= {to: section[name] for name, to in OWN.items() if name in section}
    lists, count = [section.get(key) for key in LISTS], made.get("num_hidden_layers")
    if made.get("layer_types") is None and all(isinstance(each, list) for each in lists) and isinstance(count, int):
        named = zip(lists, ("full_attention", "linear_attention"), strict=True)
        kinds = {str(i): kind for each, kind in named for i in each or ()}
        made["layer_types"] = [kinds.get(str(i + 1)) for i in range(min(count, common.MAX_LAYERS))]
    return made


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect((*channels.WORDS, *UNUSED))
    dim = config.size("qk_rope_head_dim")
    attention = replace(latent.attention(config, "half", Rope(dim, 1e4)), rope=Unturned(dim))
    heads, size, kernel = (config.size(key) for key in SIZES)
    delta = channels.delta(config, (heads, size, kernel), size, None)
    return channels.decoder(config, attention, delta, _full(config))


def _full(config: Config) -> list[bool]:
    return channels.full(config, [i > 0 and i % 4 == 0 for i in range(common.num_layers(config))])
