"""What families with Mamba 2 layers read the same way from a config, and the tensors of such a layer; and of layers
behind blocks of attention and MLP whose weights they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from minillm.config import Config, number
from minillm.families.recurrent.hybrid import MAX_KERNEL
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import Fronted, GatedMLP, Norm, SharedBlock, StateSpace


class Keys(NamedTuple):
    """What a config calls the sizes of a layer."""

    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    groups: str = "mamba_n_groups"
    state: str = "mamba_d_state"
    kernel: str = "mamba_d_conv"
    conv_bias: str = "mamba_conv_bias"
    bias: str = "mamba_proj_bias"


KEYS = Keys()
NO_END = 1e12  # files say Infinity, in transformers 5's words, or 1e308
# The defaults of a family that has `KEYS`, and what nothing depends on: the pieces in which a prompt is computed.
DEFAULTS: dict[str, Any] = {
    **dict(zip(KEYS, (128, "auto", 1, 256, 4, True, False), strict=True)),
    "mamba_expand": 2,
    "mamba_chunk_size": None,
    "time_step_limit": None,
}
# How a model is begun, or computed by others.
LEFT_OVER = ("chunk_size", "mamba_chunk_size", "time_step_min", "time_step_max", "time_step_floor", "time_step_rank",
             "num_logits_to_keep", "rescale_prenorm_residual", "residual_in_fp32", "use_mamba_kernels",
             "mamba_ssm_cache_dtype", "z_loss_coefficient")  # fmt: skip


def rules(layer: str, mixer: str = "layers.{i}.attention.") -> dict[str, str]:
    """The tensors of a layer, whose names begin so, and what they fill."""
    return {
        **{f"{layer}in_proj.{kind}": f"{mixer}zxbcd.{kind}" for kind in ("weight", "bias")},
        f"{layer}conv1d.weight": f"{mixer}conv.weight: c 1 j -> c j",
        f"{layer}conv1d.bias": f"{mixer}conv.bias",
        f"{layer}A_log": f"{mixer}decay",
        f"{layer}dt_bias": f"{mixer}step",
        f"{layer}D": f"{mixer}skip",
        f"{layer}norm.weight": f"{mixer}norm",
        **{f"{layer}out_proj.{kind}": f"{mixer}output.{kind}" for kind in ("weight", "bias")},
    }


def mamba(config: Config, norm: Norm | None, keys: Keys = KEYS, inner: int | None = None, **more: Any) -> StateSpace:
    """The layer that a config describes; all of its heads have `inner` values, if that is known."""
    config.without_effect(LEFT_OVER)
    heads, groups = config.size(keys.heads), config.size(keys.groups)
    size = inner // heads if inner and config.get(keys.head_dim) == "auto" else config.size(keys.head_dim)
    if heads % groups:
        raise ValueError(f"config.json: {keys.heads} {heads} is no multiple of {groups} groups")
    if inner is not None and size * heads != inner:
        raise ValueError(
            f"config.json: {heads} heads of {size} in {keys.heads} and {keys.head_dim} are not {inner} values"
        )
    return StateSpace(
        heads,
        size,
        groups,
        config.size(keys.state),
        config.size(keys.kernel, MAX_KERNEL),
        norm,
        config.flag(keys.conv_bias),
        config.flag(keys.bias),
        limits(config),
        **more,
    )


def limits(config: Config) -> tuple[float, float | None]:
    """Of the steps."""
    found: Any = config.get("time_step_limit")
    if found is None:
        return 0.0, None
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        raise ValueError(f"config.json: time_step_limit is {shown(found)}, expected two numbers")
    low = number("time_step_limit", found[0], low=0.0)
    high = found[1]
    if high in (None, {"__float__": "Infinity"}) or (isinstance(high, float) and high > NO_END):
        return low, None
    return low, number("time_step_limit", high, low=low)


# Of layers that share blocks: transformers 5's words for layers and others of its own.
KINDS = {"mamba": False, "linear_attention": False, "hybrid": True}
LAYER, MIXER = "model.layers.{i}.", "layers.{i}.attention."
HELD, OURS = f"{LAYER}shared_transformer.", f"{MIXER}block."


def owners(config: Config) -> dict[int, int]:
    """The layers with a block before them -> the layer that has its weights: blocks take turns, and the first use of
    each has them."""
    kinds, layers, blocks = config.get("layers_block_type"), common.num_layers(config), config.size("num_mem_blocks")
    if not isinstance(kinds, list) or len(kinds) != layers or any(str(each) not in KINDS for each in kinds):
        expected = f"expected {' or '.join(KINDS)} for each of the {layers} layers"
        raise ValueError(f"config.json: layers_block_type is {shown(kinds)}, {expected}")
    found = [i for i, kind in enumerate(kinds) if KINDS[kind]]
    return {i: found[at % blocks] for at, i in enumerate(found)}


def fronted(block: SharedBlock, layer: int, of: int, norm: Norm, recurrent: StateSpace) -> Fronted:
    return Fronted(replace(block, of=None if of == layer else of), norm, recurrent)


def wide(config: Config) -> GatedMLP:
    """The MLP whose width no config says."""
    return GatedMLP(4 * config.size("hidden_size"), config.choice("hidden_act", common.ACTIVATIONS))


def rules_behind(behind: str) -> dict[str, str]:
    """Of a block, and of the state space behind it, whose names begin so."""
    return {
        **rules(f"{behind}mamba.", f"{MIXER}recurrent."),
        f"{behind}input_layernorm.weight": f"{MIXER}norm.weight",
        f"{LAYER}linear.weight": f"{OURS}output.weight",
        f"{HELD}input_layernorm.weight": f"{OURS}norm.weight",
        f"{HELD}pre_ff_layernorm.weight": f"{OURS}ffn_norm.weight",
        **{f"{HELD}self_attn.{part}_proj.weight": f"{OURS}attention.qkv.weight[{part}]" for part in "qkv"},
        f"{HELD}self_attn.o_proj.weight": f"{OURS}attention.out.weight",
        f"{HELD}feed_forward.gate_up_proj.weight": f"{OURS}ffn.gate_up.weight",
        f"{HELD}feed_forward.down_proj.weight": f"{OURS}ffn.down.weight",
    }


def changes(owners: Mapping[int, int]) -> dict[str, str]:
    """What each use changes of its block: with the block in a checkpoint, where uses count from 0, and ours with the
    layer."""
    found = {}
    for use, (layer, of) in enumerate(owners.items()):
        block, own = f"model.layers.{of}.shared_transformer.", f"layers.{layer}.attention.block."
        for step, part in enumerate(("down", "up")):
            for x in "qkv":
                adapter = f"{block}self_attn.linear_{x}_adapter_list.{use}.{step}.weight"
                found[adapter] = f"{own}qkv_change.{x}.{part}.weight"
            adapter = f"{block}feed_forward.gate_up_proj_adapter_list.{use}.{step}.weight"
            found[adapter] = f"{own}gate_up_change.{part}.weight"
    return found
