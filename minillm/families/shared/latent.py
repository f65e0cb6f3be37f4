"""Latent attention (DeepSeek-V2, arXiv:2405.04434): names and numbers. The norms of the latents use eps 1e-6 whatever a
config says."""

from __future__ import annotations

from dataclasses import replace

from minillm.config import MAX_POSITIONS, Config
from minillm.families.shared import common, rotary
from minillm.spec import MLA, Decoder, Indexer, LayerNorm, Norm, Rope, YarnScaling

EPS = 1e-6
ATTENTION = "model.layers.{i}.self_attn."
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
}
OWN, INDEXER = f"{ATTENTION}indexer.", "layers.{i}.attention.indexer."
INDEXER_RULES = {
    f"{OWN}wq_b.weight": f"{INDEXER}q.weight",
    f"{OWN}wk.weight": f"{INDEXER}k.weight",
    f"{OWN}weights_proj.weight": f"{INDEXER}weights.weight",
    **common.weights_and_biases({f"{OWN}k_norm": f"{INDEXER}k_norm"}),
}


def rules(config: Config) -> dict[str, str]:
    """q comes from a tensor of its own, or from its latent."""
    name = "q_proj" if config.get("q_lora_rank") is None else "q_b_proj"
    return {**RULES, f"{ATTENTION}{name}.weight": "layers.{i}.attention.q.weight"}


def layout(config: Config) -> str:
    return "interleaved" if config.flag("rope_interleave") else "half"


def attention(config: Config, layout: str, turned: Rope | None = None) -> MLA:
    """What the config describes, or with this rotary embedding."""
    turned = turned or rotary.rope(config, config.size("qk_rope_head_dim"))
    nope, num_heads = config.size("qk_nope_head_dim"), config.size("num_attention_heads")
    v_dim = config.optional_size("v_head_dim") or config.size("hidden_size") // num_heads
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
        latent_norm=Norm(EPS),
        score_factor=_score_factor(config, scaling) if isinstance(scaling, YarnScaling) else 1.0,
        bias=config.flag("attention_bias"),
    )


def indexed(
    config: Config, made: Decoder, layout: str, lenders: list[int | None], norm: LayerNorm | None = None,
    last: bool = False,
) -> Decoder:  # fmt: skip
    """The decoder with the indexer that the config describes in each layer, or the choice of the layer that it is lent
    by."""
    turned, head_dim = config.size("qk_rope_head_dim"), config.size("index_head_dim")
    if head_dim < turned:
        raise ValueError(f"config.json: index_head_dim {head_dim} is less than the {turned} values that turn")
    if config.optional_size("q_lora_rank") is None:
        raise ValueError("config.json: q_lora_rank is null, and an indexer asks by the latent of the queries")
    sizes = config.size("index_n_heads"), head_dim, config.size("index_topk", MAX_POSITIONS)
    indexer = Indexer(*sizes, norm or LayerNorm(EPS), "interleaved" if layout == "interleaved" else "half", last)
    layers = []
    for layer, lender in zip(made.layers, lenders, strict=True):
        assert isinstance(layer.attention, MLA)
        layers.append(replace(layer, attention=replace(layer.attention, indexer=indexer if lender is None else lender)))
    return replace(made, layers=tuple(layers))


def _score_factor(config: Config, scaling: YarnScaling) -> float:
    all_dim = config.rope().get("mscale_all_dim") or 0
    return rotary.yarn_mscale(scaling.factor, all_dim) ** 2 if all_dim else 1.0
