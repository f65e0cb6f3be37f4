"""What llama.cpp's converter makes of state spaces and convolutions: beside `converter.py` and `stated.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm.spec import StateSpace

ARCHITECTURES = ("lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "granitehybrid", "mamba2", "mamba", "jamba")
LAYER = {
    **{f"attention.bcu.weight[{part}]": f"{part}/in" for part in "bcu"}, "attention.conv": "shortconv.conv.weight",
    "attention.output.": "shortconv.out_proj.",
}  # fmt: skip
SCAN = {
    **{f"attention.zxbcd.weight[{part}]": f"{part}/in" for part in "zxbcd"},
    **{f"attention.conv.weight[{part}]": f"{part}/conv" for part in "xbc"},
    **{f"attention.conv.bias[{part}]": f"{part}/bias" for part in "xbc"},
    "attention.decay": "ssm_a", "attention.step": "ssm_dt.bias", "attention.skip": "ssm_d",
    "attention.norm": "ssm_norm.weight", "attention.output.": "ssm_out.", "ffn.shared.up.": "ffn_up_shexp.",
    "ffn.into.": "ffn_latent_down.", "ffn.out_of.": "ffn_latent_up.",
}  # fmt: skip

SELECTIVE = {
    **{f"attention.xz.{kind}[{part}]": f"{part}/in" for part in "xz" for kind in ("weight",)},
    "attention.conv.weight[x]": "ssm_conv1d.weight", "attention.conv.bias[x]": "ssm_conv1d.bias",
    **{f"attention.dbc.weight[{part}]": f"{part}/made" for part in "dbc"}, "attention.step.": "ssm_dt.",
    "attention.d_norm.": "ssm_dt_norm.", "attention.b_norm.": "ssm_b_norm.", "attention.c_norm.": "ssm_c_norm.",
    "attention.decay": "ssm_a", "attention.skip": "ssm_d", "attention.output.": "ssm_out.",
}  # fmt: skip


def names(architecture: str) -> dict[str, str]:
    """Of a layer's rows."""
    if architecture in ("lfm2", "lfm2moe"):
        return LAYER
    if architecture in ("mamba", "jamba"):
        return SELECTIVE
    return {**SCAN, "ffn_norm.": "attn_norm."} if architecture.startswith("nemotron_h") else SCAN


def convolved(found: dict[str, Tensor], stem: str) -> None:
    """What a convolution is between."""
    found[f"{stem}shortconv.in_proj.weight"] = torch.cat([found.pop(f"{stem}{part}/in") for part in "bcu"])


def scanned(found: dict[str, Tensor], stem: str, mamba: StateSpace) -> None:
    """A layer's tensors as they lie in a file."""
    for kind, name, parts in (("in", "ssm_in.weight", "zxbcd"), ("conv", "ssm_conv1d.weight", "xbc"),
                              ("bias", "ssm_conv1d.bias", "xbc")):  # fmt: skip
        found[stem + name] = torch.cat([found.pop(f"{stem}{part}/{kind}") for part in parts])
    found[f"{stem}ssm_a"] = -found[f"{stem}ssm_a"].exp()[:, None]
    found[f"{stem}ssm_d"] = found[f"{stem}ssm_d"][:, None]
    found[f"{stem}ssm_norm.weight"] = found[f"{stem}ssm_norm.weight"].view(mamba.num_groups, -1)


def by_channel(found: dict[str, Tensor], stem: str) -> None:
    """A layer whose channels have states of their own."""
    for kind, name, parts in (("in", "ssm_in.weight", "xz"), ("made", "ssm_x.weight", "dbc")):
        found[stem + name] = torch.cat([found.pop(f"{stem}{part}/{kind}") for part in parts])
    found[f"{stem}ssm_a"] = -found[f"{stem}ssm_a"].exp().T


def metadata(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What it says of such layers."""
    kinds = values.get("layers_block_type") or values.get("layer_types") or []
    attends = [values["num_key_value_heads"] if each == "full_attention" else 0 for each in kinds]
    said: dict[str, Any] = {"attention.head_count_kv": attends}
    if architecture in ("lfm2", "lfm2moe"):
        said |= {"shortconv.l_cache": values["conv_L_cache"], "attention.layer_norm_epsilon": None,
                 "attention.layer_norm_rms_epsilon": values["norm_eps"]}  # fmt: skip
        experts = {"expert_gating_func": 2, "leading_dense_block_count": values.get("num_dense_layers")}
        return {**said, "feed_forward_length": 80, **(experts if architecture == "lfm2moe" else {})}
    if architecture in ("mamba", "jamba"):
        return {**said, **selective(architecture, values)}
    table = {
        "nemotron_h": ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
        "granitehybrid": ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
        "mamba2": ("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel"),
    }
    heads, size, groups, state, kernel = (values[key] for key in table[architecture.removesuffix("_moe")])
    said |= {"ssm.conv_kernel": kernel, "ssm.state_size": state, "ssm.group_count": groups,
             "ssm.time_step_rank": heads, "ssm.inner_size": heads * size}  # fmt: skip
    if architecture == "mamba2":
        return {**said, **dict.fromkeys(("attention.head_count", "attention.head_count_kv", "feed_forward_length"), 0),
                **dict.fromkeys(("attention.key_length", "attention.value_length", "rope.freq_base")),
                "rope.dimension_count": None, "attention.layer_norm_epsilon": None, "context_length": 128,
                "attention.layer_norm_rms_epsilon": values["layer_norm_epsilon"]}  # fmt: skip
    turns = values.get("position_embedding_type") == "rope"
    said |= {} if turns else {"rope.freq_base": None, "rope.dimension_count": None}
    if architecture == "granitehybrid":
        shared = values["shared_intermediate_size"] if values["num_local_experts"] else None
        said |= {"rope.scaling.finetuned": turns, "expert_shared_feed_forward_length": shared,
                 "expert_count": values["num_local_experts"] or None}  # fmt: skip
        dense = {} if shared else {"feed_forward_length": values["shared_intermediate_size"], "expert_used_count": None}
        return said | dense
    moe = architecture == "nemotron_h_moe"
    width = values["moe_intermediate_size"] if moe else values["intermediate_size"]
    said |= {
        "feed_forward_length": [width if each in ("mlp", "moe") else 0 for each in kinds],
        "attention.layer_norm_rms_epsilon": values["layer_norm_epsilon"],
    }
    if moe:
        shared = values["moe_shared_expert_intermediate_size"]
        return said | {"expert_shared_feed_forward_length": shared, "expert_gating_func": 2, "expert_shared_count": 1,
                       "expert_weights_scale": float(values["routed_scaling_factor"]), "block_count": len(kinds),
                       "leading_dense_block_count": None, "moe_latent_size": values["moe_latent_size"]}  # fmt: skip
    nothing = ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_count",
               "expert_group_count", "expert_group_used_count", "leading_dense_block_count",
               "expert_weights_norm")  # fmt: skip
    return {**said, **dict.fromkeys(nothing), "block_count": len(kinds)}


def selective(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What it says of layers whose channels have states of their own."""
    hidden, rank = values["hidden_size"], values.get("time_step_rank", values.get("mamba_dt_rank"))
    said = {"ssm.inner_size": 2 * hidden, "ssm.time_step_rank": rank, "rope.freq_base": None,
            "rope.dimension_count": None}  # fmt: skip
    if architecture == "jamba":
        period, offset = values["attn_layer_period"], values["attn_layer_offset"]
        keys = [
            values["num_key_value_heads"] if i % period == offset else 0 for i in range(values["num_hidden_layers"])
        ]
        mixture = {} if values["num_experts"] > 1 else {"expert_used_count": None, "expert_count": None}
        return {**said, **mixture, "ssm.state_size": values["mamba_d_state"], "ssm.conv_kernel": values["mamba_d_conv"],
                "attention.head_count_kv": keys}  # fmt: skip
    return {
        **said, "ssm.state_size": values["state_size"], "ssm.conv_kernel": values["conv_kernel"],
        "ssm.dt_b_c_rms": values["model_type"] == "falcon_mamba", "context_length": 128,
        **dict.fromkeys(("attention.head_count", "attention.head_count_kv", "feed_forward_length"), 0),
        **dict.fromkeys(("attention.key_length", "attention.value_length", "attention.layer_norm_epsilon")),
        "attention.layer_norm_rms_epsilon": values["layer_norm_epsilon"],
    }  # fmt: skip
