"""Llama, except: five of six layers are Kimi Delta Attention, whose rate of forgetting is bounded; the sixth has
DeepSeek-V2's latent attention, with a sigmoid gate on each head's output; after two dense layers come DeepSeek-V3's
mixtures.

Ling 3.0 and Ring 3.0 (inclusionAI, 2026). Multi-token prediction layers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families import llama
from minillm.families.recurrent import channels
from minillm.families.shared import common, experts, latent
from minillm.spec import Decoder, Gate

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"},
    **experts.GROUPED, **dict.fromkeys(("layer_types", "mlp_layer_types", "qk_head_dim", "q_lora_rank")),
    **dict.fromkeys(("linear_num_heads", "linear_conv_kernel_dim")),
    "vocab_size": 157184, "hidden_size": 2560, "intermediate_size": 6144, "num_hidden_layers": 42,
    "num_attention_heads": 32, "max_position_embeddings": 262144, "rope_theta": 6000000.0, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "linear_head_dim": 128,
    "moe_intermediate_size": 768, "num_experts": 512, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "first_k_dense_replace": 2, "moe_layer_freq": 1,
    "short_conv_kernel_size": 4, "layer_group_size": 6, "kda_safe_gate": True, "kda_lower_bound": -5.0,
    "num_nextn_predict_layers": None, "num_mtp_layers": 1, "mtp_loss_scaling_factor": None,
}  # fmt: skip
ATTENTION, MIXER, FFN = "model.layers.{i}.attention.", channels.MIXER, "layers.{i}.ffn."
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"model.word_embeddings": "model.embed_tokens", ".attention.": ".self_attn.",
                "self_attn.dense": "self_attn.o_proj", "self_attn.f_": "self_attn.forget_gate.f_"}  # fmt: skip
prediction_layers = experts.prediction_layers


def rules(config: Config) -> dict[str, str]:
    plain = {name: to for name, to in common.DENSE_RULES.items() if ".self_attn." not in name}
    return {
        **experts.with_mixtures(config, plain),
        "model.word_embeddings.weight": "embedding.weight",
        "model.layers.{i}.mlp.gate.expert_bias": f"{FFN}router.bias",
        f"{ATTENTION}f_proj.weight": f"{MIXER}qkvfzb.weight[f]",
        f"{ATTENTION}g_proj.weight": f"{MIXER}qkvfzb.weight[z]",
        f"{ATTENTION}A_log": f"{MIXER}decay",
        **channels.rules(ATTENTION, _full(config), "dense"),
    }


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """`head_dim` is the width of heads that forget, or transformers' word for what turns of the others, beside which
    it has the former."""
    made = channels.named(values)
    if isinstance(rope := made.get("rope_parameters"), dict) and "rope_theta" in rope:
        made.pop("rope_theta", None)  # which transformers writes beside it, whatever it is
    size = made.pop("head_dim", None)
    return made if size is None else {"linear_head_dim": size, **made}


def spec(config: Config) -> Decoder:
    config.without_effect((*channels.WORDS, "mtp_loss_scaling_factor"))
    attention = replace(latent.attention(config, "interleaved"), gate=Gate(width="head"))
    heads = config.optional_size("linear_num_heads") or config.size("num_attention_heads")
    size = config.size("linear_head_dim")
    kernel = config.size("short_conv_kernel_size")
    kernel = config.optional_size("linear_conv_kernel_dim") or kernel
    lower = config.get("kda_lower_bound")
    bound = lower if config.flag("kda_safe_gate") else None
    if bound is not None and not (isinstance(bound, (int, float)) and -1e3 <= bound < 0):
        raise ValueError(f"config.json: kda_lower_bound is {bound!r}, expected a number from -1000 to below 0")
    delta = channels.delta(config, (heads, size, kernel), None, None if bound is None else float(bound))
    return channels.decoder(config, attention, delta, _full(config))


def _full(config: Config) -> list[bool]:
    """The last of each `layer_group_size` layers."""
    group = config.size("layer_group_size", common.MAX_LAYERS)
    return channels.full(config, [(i + 1) % group == 0 for i in range(common.num_layers(config))])
