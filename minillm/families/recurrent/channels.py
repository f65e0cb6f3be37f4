"""Layers of Kimi Delta Attention between layers of latent attention: their names and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import Config, same
from minillm.families.recurrent import hybrid
from minillm.families.shared import common, experts
from minillm.guard.screen import shown
from minillm.spec import MLA, ChannelDelta, Decoder, MoE, Norm

MIXER = "layers.{i}.attention."
# What published files call otherwise than transformers.
WORDS = {"model_max_length": "max_position_embeddings", "moe_renormalize": "norm_topk_prob",
         "num_expert_group": "n_group", "num_experts_per_token": "num_experts_per_tok",
         "num_shared_experts": "n_shared_experts"}  # fmt: skip


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config with transformers' words."""
    for word, other in WORDS.items():
        same({word: values.get(word), other: values.get(other)})
    return {WORDS.get(key, key): value for key, value in values.items()}


def rules(layer: str, full: Sequence[bool], out: str = "o_proj") -> dict[str, str]:
    """The tensors of attention, whose names begin so and of which some mean another thing in layers that see all."""
    found = {
        **{f"{layer}{part}_proj.weight": f"{MIXER}qkvfzb.weight[{part}]" for part in "qkvb"},
        **{f"{layer}{part}_conv1d.weight": f"{MIXER}conv.weight[{part}]: c 1 j -> c j" for part in "qkv"},
        f"{layer}dt_bias": f"{MIXER}step",
        f"{layer}o_norm.weight": f"{MIXER}norm",
        f"{layer}{out}.weight": f"{MIXER}output.weight",
        f"{layer}q_a_proj.weight": f"{MIXER}q_down.weight",
        f"{layer}q_a_proj.bias": f"{MIXER}q_down.bias",
        f"{layer}q_a_layernorm.weight": f"{MIXER}q_norm.weight",
        f"{layer}q_b_proj.weight": f"{MIXER}q.weight",
        f"{layer}kv_a_proj_with_mqa.weight": f"{MIXER}kv_down.weight",
        f"{layer}kv_a_proj_with_mqa.bias": f"{MIXER}kv_down.bias",
        f"{layer}kv_a_layernorm.weight": f"{MIXER}kv_norm.weight",
        f"{layer}kv_b_proj.weight": f"{MIXER}kv_up",
        f"{layer}{out}.bias": f"{MIXER}out.bias",
    }
    others = {"q_proj.weight": "q.weight", f"{out}.weight": "out.weight", "g_proj.weight": "gate.weight"}
    for i in (i for i, sees_all in enumerate(full) if sees_all):
        own, to = layer.replace("{i}", str(i)), MIXER.replace("{i}", str(i))
        found |= {f"{own}{name}": f"{to}{target}" for name, target in others.items()}
    return found


def full(config: Config, default: Sequence[bool]) -> list[bool]:
    """Which layers have latent attention: as `layer_types` says, or the family's `default`."""
    kinds: Any = config.get("layer_types")
    known, layers = {"full_attention": True, "linear_attention": False}, common.num_layers(config)
    if kinds is None:
        return list(default)
    if not isinstance(kinds, list) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
        raise ValueError(f"config.json: layer_types must list {' or '.join(known)} for each of the {layers} layers")
    return [known[str(kind)] for kind in kinds]


def delta(config: Config, sizes: tuple[int, int, int], rank: int | None, bound: float | None) -> ChannelDelta:
    """A Kimi Delta Attention layer; `sizes` are its heads, the values of each, and the kernel of its convolution."""
    heads, size, kernel = sizes
    if kernel > hybrid.MAX_KERNEL:
        raise ValueError(f"config.json: a convolution over {shown(kernel)} positions, at most {hybrid.MAX_KERNEL} work")
    return ChannelDelta(heads, size, kernel, Norm(config.number("rms_norm_eps")), rank, bound)


def decoder(config: Config, attention: MLA, recurrent: ChannelDelta, full: Sequence[bool]) -> Decoder:
    """These layers, with mixtures after the first ones."""
    config.choice("hidden_act", {"silu": None, "swish": None})  # which the convolutions are followed by too
    dense, router = common.gated_mlp(config, "intermediate_size"), experts.grouped(config, "num_experts")
    moe, first = experts.mixture(config, router, dense), experts.first_dense(config)
    assert isinstance(moe, MoE)
    ffn = common.typed_layers(config, moe, dense, [i >= first for i in range(len(full))])
    return common.decoder(config, [attention if each else recurrent for each in full], ffn)
