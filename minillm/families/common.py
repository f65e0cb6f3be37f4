"""What several families read the same way from a config, and the tensor names that most checkpoints share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minillm.config import MAX_POSITIONS, Config, number, positive_integer
from minillm.spec import (
    GQA,
    MLA,
    Decoder,
    DynamicScaling,
    GatedMLP,
    Layer,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MoE,
    Norm,
    Rope,
    RopeScaling,
    Router,
    YarnScaling,
)

MAX_LAYERS = 4096

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

MAX_EXPERTS = 65536

# Rotary keys that change nothing where the kind of scaling does not ask for them.
IDLE = ("finetuned", "original_max_position_embeddings")

# The names of a checkpoint in the layout of LlamaForCausalLM -> the parameters they fill.
DENSE_RULES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "model.layers.{i}.input_layernorm.weight": "layers.{i}.attention_norm.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "layers.{i}.attention.qkv.weight[q]",
    "model.layers.{i}.self_attn.k_proj.weight": "layers.{i}.attention.qkv.weight[k]",
    "model.layers.{i}.self_attn.v_proj.weight": "layers.{i}.attention.qkv.weight[v]",
    "model.layers.{i}.self_attn.q_proj.bias": "layers.{i}.attention.qkv.bias[q]",
    "model.layers.{i}.self_attn.k_proj.bias": "layers.{i}.attention.qkv.bias[k]",
    "model.layers.{i}.self_attn.v_proj.bias": "layers.{i}.attention.qkv.bias[v]",
    "model.layers.{i}.self_attn.o_proj.weight": "layers.{i}.attention.out.weight",
    "model.layers.{i}.self_attn.o_proj.bias": "layers.{i}.attention.out.bias",
    "model.layers.{i}.self_attn.rotary_emb.inv_freq": "DROP",  # computed; early exports stored it
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.ffn_norm.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "layers.{i}.ffn.gate_up.weight[gate]",
    "model.layers.{i}.mlp.up_proj.weight": "layers.{i}.ffn.gate_up.weight[up]",
    "model.layers.{i}.mlp.down_proj.weight": "layers.{i}.ffn.down.weight",
    "model.layers.{i}.mlp.gate_proj.bias": "layers.{i}.ffn.gate_up.bias[gate]",
    "model.layers.{i}.mlp.up_proj.bias": "layers.{i}.ffn.gate_up.bias[up]",
    "model.layers.{i}.mlp.down_proj.bias": "layers.{i}.ffn.down.bias",
}

# The names of a mixture of experts in most checkpoints that are not Mixtral's.
MOE_RULES = {
    "model.layers.{i}.mlp.gate.weight": "layers.{i}.ffn.router.weight",
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight": "layers.{i}.ffn.experts.gate_up[{e}.gate]",
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight": "layers.{i}.ffn.experts.gate_up[{e}.up]",
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight": "layers.{i}.ffn.experts.down[{e}]",
}

QK_NORM_RULES = {
    "model.layers.{i}.self_attn.q_norm.weight": "layers.{i}.attention.q_norm.weight",
    "model.layers.{i}.self_attn.k_norm.weight": "layers.{i}.attention.k_norm.weight",
}


def without_mlp(rules: dict[str, str]) -> dict[str, str]:
    """The rules without those of dense feed-forwards, for a family that has none."""
    return {pattern: target for pattern, target in rules.items() if ".mlp." not in pattern}


def dense(config: Config, attention: Sequence[GQA], mlp_bias: bool = False) -> Decoder:
    """A decoder of pre-norm layers with the given attentions and one gated MLP, all with the config's RMSNorm."""
    return decoder(config, attention, [gated_mlp(config, "intermediate_size", mlp_bias)] * len(attention))


def gated_mlp(config: Config, size: str, bias: bool = False) -> GatedMLP:
    """The gated MLP whose width the config calls `size`."""
    return GatedMLP(config.size(size), config.choice("hidden_act", ACTIVATIONS), bias)


def decoder(
    config: Config, attention: Sequence[GQA | MLA], ffn: Sequence[GatedMLP | MoE], norm: Norm | LayerNorm | None = None
) -> Decoder:
    """A decoder of pre-norm layers with these parts; the norm is the config's RMSNorm or the one given."""
    norm = norm or Norm(config.number("rms_norm_eps"))
    return Decoder(
        vocab_size=config.size("vocab_size"),
        hidden_size=config.size("hidden_size"),
        layers=tuple(Layer(norm, a, norm, f) for a, f in zip(attention, ffn, strict=True)),
        final_norm=norm,
        tied=config.flag("tie_word_embeddings"),
        context=context(config, attention[0].rope),
    )


def router(config: Config, experts: str = "num_experts", **values: Any) -> Router:
    """The config's `num_experts_per_tok` of `experts`; every other field as given."""
    num_experts, top_k = config.size(experts, MAX_EXPERTS), config.size("num_experts_per_tok", MAX_EXPERTS)
    made = Router(num_experts, top_k, **values)
    if num_experts % made.num_groups:
        raise ValueError(f"config.json: n_group {made.num_groups} does not divide the {num_experts} experts")
    if made.top_groups > made.num_groups:
        raise ValueError(f"config.json: topk_group {made.top_groups} is more than the {made.num_groups} groups")
    group = num_experts // made.num_groups
    if made.num_groups > 1 and made.group_score == "top2_sum" and group < 2:
        raise ValueError(f"config.json: {made.num_groups} groups of one expert each; the group score needs two")
    if top_k > (available := group * made.top_groups):
        raise ValueError(
            f"config.json: num_experts_per_tok {top_k} is more than the {available} experts to choose from"
        )
    return made


def sparse_layers(config: Config, moe: MoE, dense: GatedMLP) -> list[GatedMLP | MoE]:
    """Each layer's ffn: an MoE in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not list."""
    step, listed = config.size("decoder_sparse_step"), config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(each) is int for each in listed):
        raise ValueError(f"config.json: mlp_only_layers is {str(listed)[:40]}, expected a list of layer numbers")
    return [dense if i in listed or (i + 1) % step else moe for i in range(num_layers(config))]


def num_layers(config: Config) -> int:
    return config.size("num_hidden_layers", MAX_LAYERS)


def heads(config: Config) -> tuple[int, int, int]:
    """(num_heads, num_kv_heads, head_dim); head_dim is hidden_size / num_heads only where the config is silent."""
    num_heads = config.size("num_attention_heads")
    num_kv_heads = config.optional_size("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise ValueError(f"config.json: {num_heads} attention heads are no multiple of {num_kv_heads} kv heads")
    hidden_size = config.size("hidden_size")
    head_dim = config.optional_size("head_dim")
    if head_dim is None and hidden_size % num_heads:
        raise ValueError(f"config.json: hidden_size {hidden_size} is no multiple of {num_heads} heads; give head_dim")
    return num_heads, num_kv_heads, head_dim or hidden_size // num_heads


def rope(config: Config, head_dim: int) -> Rope:
    """The rotary embedding of a whole head, with the scaling that the config asks for."""
    if head_dim % 2:
        raise ValueError(f"config.json: rotary positions of {head_dim} values per head; their number must be even")
    values = config.rope()
    theta = number("rope_theta", values.pop("rope_theta"), low=1.0001)
    kind = values.pop("rope_type")
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ValueError(f"config.json: rope_type is {kind!r}, supported are {', '.join(SCALINGS)}")
    scaling = SCALINGS[kind](values, config.positions("max_position_embeddings"))
    if isinstance(scaling, LongRopeScaling) and len(scaling.short_factors) != head_dim // 2:
        raise ValueError(f"config.json: {len(scaling.short_factors)} longrope factors, heads need {head_dim // 2}")
    if isinstance(scaling, DynamicScaling) and head_dim == 2:
        raise ValueError("config.json: head_dim is 2, dynamic rope scaling needs 4 or more")
    if (part := values.pop("partial_rotary_factor", None)) not in (None, 1):
        raise ValueError(f"config.json: partial_rotary_factor is {part!r}; this family turns whole heads")
    config.report_unread(
        f"rope_scaling.{key}" for key, value in values.items() if value is not None and key not in IDLE
    )
    return Rope(head_dim, theta, scaling=scaling)


def context(config: Config, rotary: Rope) -> int:
    """Positions the model is meant for: what the config says, or what its scaling stretches the original to."""
    positions = config.positions("max_position_embeddings")
    if isinstance(rotary.scaling, (DynamicScaling, YarnScaling)):
        return max(positions, int(rotary.scaling.factor * rotary.scaling.original_positions))
    return positions


def window(config: Config) -> int | None:
    """`sliding_window`, which null, false and 0 switch off."""
    return config.size("sliding_window", MAX_POSITIONS) if config.get("sliding_window") else None


def windows(config: Config) -> list[int | None]:
    """Each layer's window where `use_sliding_window` decides, then `layer_types` or `max_window_layers` says where."""
    slides, first = switched_window(config), config.get("max_window_layers")
    if slides and (isinstance(first, bool) or not isinstance(first, int)):
        raise ValueError(f"config.json: max_window_layers is {first!r}, expected a whole number")
    return typed_windows(config, slides, [bool(slides) and i >= first for i in range(num_layers(config))])


def switched_window(config: Config) -> int | None:
    """`sliding_window`, where `use_sliding_window` is on."""
    stated = window(config)
    return stated if config.flag("use_sliding_window") else None


def typed_windows(config: Config, slides: int | None, default: Sequence[bool]) -> list[int | None]:
    """Each layer's window: `slides` where `layer_types` says so, or where the family's `default` does."""
    kinds, layers = config.get("layer_types"), num_layers(config)
    if kinds is None:
        return [slides if each else None for each in default]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"config.json: layer_types must list one type for each of the {layers} layers")
    if odd := sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}):
        raise ValueError(f"config.json: layer_types has {', '.join(odd)}; full_attention and sliding_attention work")
    if slides is None and "sliding_attention" in kinds:
        raise ValueError("config.json: layer_types has sliding_attention, but sliding_window is off")
    return [slides if kind == "sliding_attention" else None for kind in kinds]


def _linear(values: dict[str, Any], positions: int) -> RopeScaling:
    return LinearScaling(_factor(values))


def _dynamic(values: dict[str, Any], positions: int) -> RopeScaling:
    # Growth is measured from the config's own limit, as in transformers, whatever original length is stated beside it.
    return DynamicScaling(_factor(values), positions)


def _llama3(values: dict[str, Any], positions: int) -> RopeScaling:
    low, high = (number(key, values.pop(key, None)) for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ValueError(f"config.json: low_freq_factor {low} is not below high_freq_factor {high}")
    return Llama3Scaling(_factor(values), low, high, _original(values, positions))


def _yarn(values: dict[str, Any], positions: int) -> RopeScaling:
    original = _original(values, positions)
    factor = _factor(values) if values.get("factor") is not None else positions / original
    values.pop("factor", None)
    mscale, all_dim = (number(key, values.pop(key, None) or 0, low=0) for key in ("mscale", "mscale_all_dim"))
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"config.json: truncate is {truncate!r}, expected true or false")
    attention_factor = values.pop("attention_factor", None)
    if attention_factor is None:
        both = mscale and all_dim
        attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim) if both else yarn_mscale(factor)
    return YarnScaling(
        factor=factor,
        original_positions=original,
        attention_factor=number("attention_factor", attention_factor),
        beta_fast=number("beta_fast", values.pop("beta_fast", None) or 32.0),
        beta_slow=number("beta_slow", values.pop("beta_slow", None) or 1.0),
        truncate=truncate,
    )


def _longrope(values: dict[str, Any], positions: int) -> RopeScaling:
    original = _original(values, positions)
    factors = [tuple(values.pop(key, None) or ()) for key in ("short_factor", "long_factor")]
    if not factors[0] or len(factors[0]) != len(factors[1]):
        raise ValueError("config.json: longrope needs a short_factor and a long_factor of the same length")
    short, long = (tuple(number("rope factor", each, low=0.01, high=1e6) for each in part) for part in factors)
    factor = values.pop("factor", None) or positions / original
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    default = values.pop("attention_factor", None) or default
    mscales = [number(key, values.pop(key, None) or default) for key in ("short_mscale", "long_mscale")]
    return LongRopeScaling(short, long, original, *mscales)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """0.1 m ln(factor) + 1, the temperature correction of YaRN (arXiv:2309.00071, section 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factor(values: dict[str, Any]) -> float:
    return number("rope factor", values.pop("factor", None), low=0.01, high=1e6)


def _original(values: dict[str, Any], positions: int) -> int:
    stated = values.pop("original_max_position_embeddings", None)
    if isinstance(stated, float) and stated.is_integer():
        stated = int(stated)
    return positions if stated is None else positive_integer("original_max_position_embeddings", stated, MAX_POSITIONS)


SCALINGS = {
    "default": lambda values, positions: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
