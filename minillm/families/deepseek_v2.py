"""Llama, except: latent attention, and after `first_k_dense_replace` dense layers mixtures of many small experts with a
softmax router, shared experts, and (the large model) a choice limited to the best groups.

DeepSeek-V2, V2-Lite, V2.5, Coder-V2 (arXiv:2405.04434). YaRN's temperature is applied twice, separately: mscale over
mscale_all_dim to cos and sin, mscale_all_dim squared to the scores. The norms of the latents use eps 1e-6 whatever the
config says.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import MLA, Decoder, GatedMLP, MoE, Norm, Rope, Router, YarnScaling

LATENT_EPS = 1e-6

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 102400,
    "num_key_value_heads": None,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_group": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "qk_head_dim": None,
    "routed_scaling_factor": 1.0,
    "topk_group": None,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "v_head_dim": 128,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
}

ATTENTION = "model.layers.{i}.self_attn."
SHARED_RULES = {
    "model.layers.{i}.mlp.shared_experts.gate_proj.weight": "layers.{i}.ffn.shared.gate_up.weight[gate]",
    "model.layers.{i}.mlp.shared_experts.up_proj.weight": "layers.{i}.ffn.shared.gate_up.weight[up]",
    "model.layers.{i}.mlp.shared_experts.down_proj.weight": "layers.{i}.ffn.shared.down.weight",
}
RULES = {
    **{key: value for key, value in common.DENSE_RULES.items() if not key.startswith(ATTENTION)},
    ATTENTION + "q_a_proj.weight": "layers.{i}.attention.q_down.weight",
    ATTENTION + "q_a_proj.bias": "layers.{i}.attention.q_down.bias",
    ATTENTION + "q_a_layernorm.weight": "layers.{i}.attention.q_norm.weight",
    ATTENTION + "kv_a_proj_with_mqa.weight": "layers.{i}.attention.kv_down.weight",
    ATTENTION + "kv_a_proj_with_mqa.bias": "layers.{i}.attention.kv_down.bias",
    ATTENTION + "kv_a_layernorm.weight": "layers.{i}.attention.kv_norm.weight",
    ATTENTION + "kv_b_proj.weight": "layers.{i}.attention.kv_up",
    ATTENTION + "o_proj.weight": "layers.{i}.attention.out.weight",
    ATTENTION + "o_proj.bias": "layers.{i}.attention.out.bias",
    ATTENTION + "rotary_emb.inv_freq": "DROP",
    **common.MOE_RULES,
    **SHARED_RULES,
}


def rules(config: Config) -> dict[str, str]:
    """q comes from a tensor of its own, or from its latent."""
    name = "q_proj" if config.get("q_lora_rank") is None else "q_b_proj"
    return {**RULES, f"{ATTENTION}{name}.weight": "layers.{i}.attention.q.weight"}


def spec(config: Config) -> Decoder:
    groups: dict[str, Any]
    if config.choice("topk_method", {"greedy": False, "group_limited_greedy": True}):
        groups = {"num_groups": config.size("n_group"), "top_groups": config.size("topk_group")}
    else:
        groups = {}  # the choice is not limited, whatever is stated
        config.optional_size("n_group"), config.optional_size("topk_group")
    config.choice("scoring_func", {"softmax": None})
    if config.flag("norm_topk_prob"):
        raise ValueError(
            "config.json: norm_topk_prob is true; the authors' code divides by the sum then, transformers does not, "
            "and every published model of this family says false"
        )
    router = common.router(config, "n_routed_experts", scale=config.number("routed_scaling_factor"), **groups)
    return latent(config, router, mlp_bias=config.flag("mlp_bias"))


def latent(config: Config, router: Router, layout: str = "interleaved", mlp_bias: bool = False) -> Decoder:
    """Latent attention in every layer, and the router's mixture in all but the first ones."""
    dense, layers = common.gated_mlp(config, "intermediate_size", mlp_bias), common.num_layers(config)
    attention = [latent_attention(config, layout)] * layers
    return common.decoder(config, attention, mixtures(config, router, dense))


def latent_attention(config: Config, layout: str) -> MLA:
    turned = rotary.rope(config, config.size("qk_rope_head_dim"))
    nope, v_dim, num_heads = (config.size(key) for key in ("qk_nope_head_dim", "v_head_dim", "num_attention_heads"))
    config.derived("num_key_value_heads", {num_heads})
    config.derived("qk_head_dim", {nope + turned.dim})
    config.derived("head_dim", {nope, turned.dim, nope + turned.dim, v_dim})  # authors differ in what they call so
    scaling = turned.scaling
    return MLA(
        num_heads=num_heads,
        q_rank=config.optional_size("q_lora_rank"),
        kv_rank=config.size("kv_lora_rank"),
        nope_dim=nope,
        v_dim=v_dim,
        rope=Rope(turned.dim, turned.theta, "interleaved" if layout == "interleaved" else "half", scaling),
        latent_norm=Norm(LATENT_EPS),
        score_factor=_score_factor(config, scaling) if isinstance(scaling, YarnScaling) else 1.0,
        bias=config.flag("attention_bias"),
    )


def _score_factor(config: Config, scaling: YarnScaling) -> float:
    all_dim = config.rope().get("mscale_all_dim") or 0
    return rotary.yarn_mscale(scaling.factor, all_dim) ** 2 if all_dim else 1.0


def mixture(config: Config, router: Router, dense: GatedMLP) -> MoE:
    """A mixture with shared experts in one MLP of their joint width."""
    if (every := config.get("moe_layer_freq")) != 1:
        raise ValueError(f"config.json: moe_layer_freq is {every!r}; only 1 has ever been published and works")
    width, shared = config.size("moe_intermediate_size"), config.get("n_shared_experts") or 0
    if type(shared) is not int or shared < 0 or width * shared > 2**20:
        raise ValueError(f"config.json: n_shared_experts is {shared!r}, expected a small number")
    joint = GatedMLP(width * shared, dense.activation, dense.bias) if shared else None
    return MoE(router, width, dense.activation, joint)


def mixtures(config: Config, router: Router, dense: GatedMLP) -> list[GatedMLP | MoE]:
    """`first_k_dense_replace` dense layers, then mixtures."""
    moe, first = mixture(config, router, dense), first_dense(config)
    return [dense if i < first else moe for i in range(common.num_layers(config))]


def first_dense(config: Config) -> int:
    first = config.get("first_k_dense_replace")
    if type(first) is not int or first < 0:
        raise ValueError(f"config.json: first_k_dense_replace is {first!r}, expected a number of layers")
    return first
