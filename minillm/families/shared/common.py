"""What several families read the same way from a config, and the tensor names that most checkpoints share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, Config
from minillm.families.shared import rotary
from minillm.guard.screen import shown
from minillm.spec import (
    GQA,
    MLP,
    Attention,
    Beside,
    Decoder,
    GatedMLP,
    Layer,
    LayerNorm,
    Mixer,
    MoE,
    Norm,
    Rope,
    Router,
)

MAX_LAYERS = 4096

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# Of MLPs without a gate.
PLAIN_ACTIVATIONS = {**ACTIVATIONS, "relu": "relu", "relu2": "relu2"}

MAX_EXPERTS = 65536
MAX_EXPERTS_IN_ALL = 2**18  # of all layers together: ten times those of the largest model published

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

# What predicts more than the next token, beside the decoder or behind it.
AHEAD = "DROP: layers of multi-token prediction, which generation does without"

# All experts of a layer in one tensor, as transformers 5 has them in memory and can write them.
STACKED_EXPERTS = {
    "model.layers.{i}.mlp.experts.gate_up_proj": "layers.{i}.ffn.experts.gate_up",
    "model.layers.{i}.mlp.experts.down_proj": "layers.{i}.ffn.experts.down",
}
# The names of a mixture of experts in most checkpoints that are not Mixtral's.
MOE_RULES = {
    "model.layers.{i}.mlp.gate.weight": "layers.{i}.ffn.router.weight",
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight": "layers.{i}.ffn.experts.gate_up[{e}.gate]",
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight": "layers.{i}.ffn.experts.gate_up[{e}.up]",
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight": "layers.{i}.ffn.experts.down[{e}]",
    **STACKED_EXPERTS,
}

QK_NORM_RULES = {
    "model.layers.{i}.self_attn.q_norm.weight": "layers.{i}.attention.q_norm.weight",
    "model.layers.{i}.self_attn.k_norm.weight": "layers.{i}.attention.k_norm.weight",
}


def shared_expert(prefix: str) -> dict[str, str]:
    """Rules for the expert that every token goes through, whose names begin so."""
    up = {f"{prefix}{part}_proj.weight": f"layers.{{i}}.ffn.shared.gate_up.weight[{part}]" for part in ("gate", "up")}
    return {**up, f"{prefix}down_proj.weight": "layers.{i}.ffn.shared.down.weight"}


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
    config: Config,
    mixers: Sequence[Mixer],
    ffn: Sequence[GatedMLP | MLP | MoE],
    norm: Norm | LayerNorm | None = None,
) -> Decoder:
    """A decoder of pre-norm layers with these parts; the norm is the config's RMSNorm or the one given."""
    norm = norm or Norm(config.number("rms_norm_eps"))
    return Decoder(
        vocab_size=config.size("vocab_size"),
        hidden_size=config.size("hidden_size"),
        layers=tuple(Layer(norm, a, norm, f) for a, f in zip(mixers, ffn, strict=True)),
        final_norm=norm,
        tied=config.flag("tie_word_embeddings"),
        context=rotary.context(config, _rope(mixers)),
    )


def _rope(mixers: Sequence[Mixer]) -> Rope | None:
    """That of the first attention that has one."""
    found = (each.attention if isinstance(each, Beside) else each for each in mixers)
    return next((each.rope for each in found if isinstance(each, Attention) and isinstance(each.rope, Rope)), None)


def every_layer(decoder: Decoder, **changes: Any) -> Decoder:
    """The decoder with these fields of its layers replaced."""
    return replace(decoder, layers=tuple(replace(layer, **changes) for layer in decoder.layers))


def causal_only(config: Config) -> None:
    if config.get("use_bidirectional_attention"):
        raise ValueError("config.json: use_bidirectional_attention is on; a model that looks ahead cannot generate")


def only(config: Config, fixed: Mapping[str, Any]) -> None:
    """Raise ValueError where a key has another value than the one that a family's own code knows."""
    for key, value in fixed.items():
        if config.get(key) != value:
            raise ValueError(f"config.json: {key} is {shown(config.get(key))}; this family's code knows {value!r} only")


def in_layers(attention: GQA, windows: Sequence[int | None], ropes: Sequence[Rope | None]) -> list[GQA]:
    """The same attention in every layer but for its window and its rotary embedding."""
    return [replace(attention, window=window, rope=rope) for window, rope in zip(windows, ropes, strict=True)]


def weights_and_biases(named: Mapping[str, str]) -> dict[str, str]:
    """Rules for the two tensors of each module: the name in a checkpoint -> the module that it fills."""
    return {f"{name}.{kind}": f"{target}.{kind}" for name, target in named.items() for kind in ("weight", "bias")}


def router(config: Config, experts: str = "num_experts", chosen: str = "num_experts_per_tok", **values: Any) -> Router:
    """The config's `chosen` of `experts`; every other field as given."""
    num_experts, top_k = config.size(experts, MAX_EXPERTS), config.size(chosen, MAX_EXPERTS)
    if num_experts * (layers := num_layers(config)) > MAX_EXPERTS_IN_ALL:
        raise ValueError(
            f"config.json: {layers} layers of {num_experts} experts; the limit is {MAX_EXPERTS_IN_ALL} in all"
        )
    made = Router(num_experts, top_k, **values)
    if num_experts % made.num_groups:
        raise ValueError(f"config.json: n_group {made.num_groups} does not divide the {num_experts} experts")
    if made.top_groups > made.num_groups:
        raise ValueError(f"config.json: topk_group {made.top_groups} is more than the {made.num_groups} groups")
    group = num_experts // made.num_groups
    if made.num_groups > 1 and made.group_score == "top2_sum" and group < 2:
        raise ValueError(f"config.json: {made.num_groups} groups of one expert each; the group score needs two")
    if top_k > (available := group * made.top_groups):
        raise ValueError(f"config.json: {chosen} {top_k} is more than the {available} experts to choose from")
    return made


def sparse_layers(config: Config, moe: MoE, dense: GatedMLP) -> list[GatedMLP | MoE]:
    """Each layer's ffn: an MoE in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not list."""
    step, listed = config.size("decoder_sparse_step"), config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(each) is int for each in listed):
        raise ValueError(f"config.json: mlp_only_layers is {str(listed)[:40]}, expected a list of layer numbers")
    if odd := [i for i in listed if not 0 <= i < num_layers(config)]:
        raise ValueError(f"config.json: mlp_only_layers has {odd[0]}; the layers are 0 to {num_layers(config) - 1}")
    return [dense if i in listed or (i + 1) % step else moe for i in range(num_layers(config))]


def typed_layers(config: Config, moe: MoE, dense: GatedMLP, default: Sequence[bool]) -> list[GatedMLP | MoE]:
    """Each layer's ffn: an MoE where `mlp_layer_types` says so, or where the family's `default` does."""
    kinds, layers = config.get("mlp_layer_types"), num_layers(config)
    if kinds is None:
        return [moe if each else dense for each in default]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in ("dense", "sparse") for kind in kinds):
        raise ValueError(f"config.json: mlp_layer_types must list dense or sparse for each of the {layers} layers")
    return [moe if kind == "sparse" else dense for kind in kinds]


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


def heads_by_layer(config: Config) -> list[tuple[int, int, int]]:
    """The same for each layer, where `num_attention_heads_per_layer` may give them other numbers of heads."""
    (num_heads, num_kv_heads, head_dim), layers = heads(config), num_layers(config)
    listed = config.get("num_attention_heads_per_layer")
    listed = [num_heads] * layers if listed is None else listed
    if not isinstance(listed, list) or len(listed) != layers or any(type(n) is not int or n < 1 for n in listed):
        raise ValueError(f"config.json: num_attention_heads_per_layer must list a number for each of {layers} layers")
    if odd := [each for each in listed if each % num_kv_heads]:
        raise ValueError(f"config.json: {odd[0]} attention heads are no multiple of {num_kv_heads} kv heads")
    return [(each, num_kv_heads, head_dim) for each in listed]


def first_layers(config: Config, key: str) -> int:
    """How many layers at the start a key says something of: none to all."""
    first, layers = config.get(key), num_layers(config)
    if type(first) is not int or not 0 <= first <= layers:
        raise ValueError(f"config.json: {key} is {shown(first)}, expected a number from 0 to {layers}")
    return first


def window(config: Config) -> int | None:
    """`sliding_window`, which null, false and 0 switch off."""
    return config.size("sliding_window", MAX_POSITIONS) if config.get("sliding_window") else None


def windows(config: Config) -> list[int | None]:
    """Each layer's window where `use_sliding_window` decides, then `layer_types` or `max_window_layers` says where."""
    slides, first = switched_window(config), first_windowed(config)
    return typed_windows(config, slides, [bool(slides) and i >= first for i in range(num_layers(config))])


def first_windowed(config: Config) -> int:
    """`max_window_layers`, which null and a negative number leave at 0."""
    first = config.get("max_window_layers")
    if first is not None and type(first) is not int:
        raise ValueError(f"config.json: max_window_layers is {shown(first)}, expected a whole number")
    return max(first or 0, 0)


def switched_window(config: Config) -> int | None:
    """`sliding_window`, where `use_sliding_window` is on."""
    stated, on = window(config), config.flag("use_sliding_window")
    if on and stated is None:
        raise ValueError("config.json: use_sliding_window is true, but sliding_window gives no width")
    return stated if on else None


def typed_windows(
    config: Config, slides: int | None, default: Sequence[bool], word: str = "sliding_attention"
) -> list[int | None]:
    """Each layer's window: `slides` where `layer_types` says the word, or where the family's `default` does."""
    kinds, layers = config.get("layer_types"), num_layers(config)
    if kinds is None:
        return [slides if each else None for each in default]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"config.json: layer_types must list one type for each of the {layers} layers")
    if odd := sorted({str(kind) for kind in kinds} - {"full_attention", word}):
        raise ValueError(f"config.json: layer_types has {', '.join(odd)}; full_attention and {word} work")
    if slides is None and word in kinds:
        size = "sliding_window" if word == "sliding_attention" else "attention_chunk_size"
        raise ValueError(f"config.json: layer_types has {word}, but {size} is off")
    return [slides if kind == word else None for kind in kinds]


def words(key: str, listed: Any, named: Sequence[str]) -> list[str]:
    """What a list of 0 and 1 stands for."""
    if not isinstance(listed, list) or any(each not in (0, 1) for each in listed):
        raise ValueError(f"config.json: {key} is {shown(listed)}, expected a list of 0 and 1")
    return [named[each] for each in listed]


def flags(config: Config, key: str, default: Sequence[bool]) -> list[bool]:
    """What a config lists as 0 or 1 for each layer, or the family's `default` where it is silent."""
    listed, layers = config.get(key), num_layers(config)
    if listed is None:
        return list(default)
    if not isinstance(listed, list) or len(listed) != layers or any(each not in (0, 1) for each in listed):
        raise ValueError(f"config.json: {key} must list 0 or 1 for each of the {layers} layers")
    return [bool(each) for each in listed]
