"""Mixtures of many small experts beside shared ones, as DeepSeek-V2 and V3 have them, in all layers but the first."""

from __future__ import annotations

from collections.abc import Mapping

from minillm.config import Config
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import GatedMLP, MoE, Router

SHARED_RULES = common.shared_expert("model.layers.{i}.mlp.shared_experts.")
GROUPED = {"norm_topk_prob": True, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1}
MAX_PREDICTED = 64  # far more tokens ahead than anyone predicts


def with_mixtures(config: Config, rules: Mapping[str, str]) -> dict[str, str]:
    """A family's rules and those of mixtures with a correction bias. The multi-token-prediction layers come after the
    last one and are no part of the decoder."""
    return {
        **{f"{layer}*": common.AHEAD for layer in prediction_layers(config)},
        **rules,
        **common.MOE_RULES,
        **SHARED_RULES,
        "model.layers.{i}.mlp.gate.e_score_correction_bias": "layers.{i}.ffn.router.bias",
    }


def prediction_layers(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """How the names of each multi-token-prediction layer's tensors begin, and the shapes of those that no other layer
    has: embedding and head of its own, and what joins the next token to the hidden state. All of them are plain."""
    first, vocab, hidden = common.num_layers(config), config.size("vocab_size"), config.size("hidden_size")
    values = {key: config.get(key) for key in ("num_nextn_predict_layers", "num_mtp_layers")}
    extra = max((config.size(key, MAX_PREDICTED) for key, value in values.items() if value), default=0)
    own: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab, hidden),
        "enorm.weight": (hidden,),
        "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden),
        "shared_head.norm.weight": (hidden,),
        "shared_head.head.weight": (vocab, hidden),
    }
    return {f"model.layers.{first + i}.": own for i in range(extra)}


def grouped(config: Config, experts: str) -> Router:
    """Of as many as the key `experts` says."""
    return common.router(
        config,
        experts,
        score="sigmoid",
        renormalize=config.flag("norm_topk_prob"),
        scale=config.number("routed_scaling_factor"),
        bias=True,
        num_groups=config.optional_size("n_group") or 1,
        top_groups=config.optional_size("topk_group") or 1,
        group_score="top2_sum",
    )


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


def sparse(config: Config) -> list[int]:
    """Which layers have mixtures: those listed, or every so many'th."""
    layers, listed, step = common.num_layers(config), config.get("moe_layers"), config.size("interleave_moe_layer_step")
    if listed is None:
        return list(range(step - 1, layers, step))
    if not isinstance(listed, list) or not all(type(each) is int and 0 <= each < layers for each in listed):
        raise ValueError(f"config.json: moe_layers is {shown(listed)}, expected numbers of layers below {layers}")
    return listed
