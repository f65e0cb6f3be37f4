"""llama.cpp's architectures with Mamba layers: how files say which layers these are, read and written, and the names of
their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm.families.gguf.metadata import File
from minillm.families.gguf.states import each_layer, epsilon
from minillm.spec import GQA, Decoder, SelectiveScan

Values = dict[str, Any]
NAMES = ("mamba", "jamba")
LAYER, MIXER = "blk.{i}.", "layers.{i}.attention."
RULES = {
    **{f"{LAYER}ssm_in.{kind}": f"{MIXER}xz.{kind}" for kind in ("weight", "bias")},
    **{f"{LAYER}ssm_conv1d.{kind}": f"{MIXER}conv.{kind}" for kind in ("weight", "bias")},
    f"{LAYER}ssm_x.weight": f"{MIXER}dbc.weight",
    **{f"{LAYER}ssm_dt.{kind}": f"{MIXER}step.{kind}" for kind in ("weight", "bias")},
    **{f"{LAYER}ssm_{name}_norm.weight": f"{MIXER}{part}_norm.weight"
       for name, part in (("dt", "d"), ("b", "b"), ("c", "c"))},
    f"{LAYER}ssm_a": f"{MIXER}decay: i n -> n i",
    f"{LAYER}ssm_d": f"{MIXER}skip",
    f"{LAYER}ssm_out.weight": f"{MIXER}output.weight",
}  # fmt: skip


def metadata(decoder: Decoder, name: str) -> Values:
    """What a file says of such layers."""
    space = _space(decoder)
    said: Values = {
        "ssm.conv_kernel": space.conv_kernel,
        "ssm.state_size": space.state_size,
        "ssm.time_step_rank": space.step_rank,
        "ssm.inner_size": space.channels,
    }
    if name == "mamba":
        nothing = dict.fromkeys(("attention.head_count", "attention.head_count_kv", "feed_forward_length"), 0)
        return {**said, **nothing, "ssm.dt_b_c_rms": space.norm is not None}
    keys = [next((each.num_kv_heads for each in layer.mixers if isinstance(each, GQA)), 0) for layer in decoder.layers]
    return {**said, "attention.head_count_kv": np.array(keys, np.int32)}


def mamba(file: File) -> Values:
    nothing = dict.fromkeys(("num_attention_heads", "num_key_value_heads", "intermediate_size", "rope_theta"))
    normed = file.get("ssm.dt_b_c_rms", False)
    inside = {"mixer_rms_eps": file.need("attention.layer_norm_rms_epsilon")} if normed else {}
    made = _sizes(file, ("expand", "state_size", "conv_kernel", "time_step_rank"))
    return {"model_type": "falcon_mamba" if normed else "mamba", **nothing, **made, **epsilon(file), **inside}


def jamba(file: File) -> Values:
    keys = each_layer(file, "attention.head_count_kv")
    values = {
        "model_type": "jamba",
        "num_key_value_heads": max(keys) or 1,
        "rope_theta": None,
        **_periodic("attn_layer", [bool(each) for each in keys]),
        **_sizes(file, ("mamba_expand", "mamba_d_state", "mamba_d_conv", "mamba_dt_rank")),
    }
    if not file.get("expert_count", 0):
        return {**values, "num_experts": 1}
    mixed = [file.has(f"blk.{i}.ffn_gate_inp.weight") for i in range(len(keys))]
    chosen = {"num_experts": file.need("expert_count"), "num_experts_per_tok": file.need("expert_used_count")}
    return {**values, **chosen, **_periodic("expert_layer", mixed)}


def _sizes(file: File, keys: Sequence[str]) -> Values:
    found = file.size("ssm.state_size"), file.size("ssm.conv_kernel"), file.size("ssm.time_step_rank")
    expand = file.size("ssm.inner_size") / (file.size("embedding_length") or 1)
    return dict(zip(keys, (expand, *found), strict=True))


def _periodic(key: str, flags: Sequence[bool]) -> Values:
    """Where every so many'th layer is of a kind: the distance, and the first."""
    places = [i for i, each in enumerate(flags) if each]
    first = places[0] if places else len(flags)
    return {f"{key}_offset": first, f"{key}_period": places[1] - first if len(places) > 1 else len(flags) + 1}


def _space(decoder: Decoder) -> SelectiveScan:
    return next(each for each in decoder.mixers if isinstance(each, SelectiveScan))


def other_biases(decoder: Decoder) -> bool:
    """Whether there are others than a convolution's, or these are missing."""
    return any(isinstance(each, SelectiveScan) and (each.bias or not each.conv_bias) for each in decoder.mixers)


def other_width(decoder: Decoder) -> bool:
    """Whether there are not twice as many channels as the embedding has."""
    return _space(decoder).channels != 2 * decoder.hidden_size


ARCHITECTURES = {"mamba": mamba, "jamba": jamba}
