"""Layers behind blocks of attention and MLP whose weights they share: which have which, and what the tensors are
called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from minillm.config import Config
from minillm.families.recurrent import state_space
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import Fronted, GatedMLP, Norm, SharedBlock, StateSpace

KINDS = {"mamba": False, "linear_attention": False, "hybrid": True}  # transformers 5's word and another of its own
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


def rules(behind: str) -> dict[str, str]:
    """Of a block, and of the state space behind it, whose names begin so."""
    return {
        **state_space.rules(f"{behind}mamba.", f"{MIXER}recurrent."),
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
