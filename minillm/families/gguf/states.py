"""Architectures of llama.cpp some of whose layers are state spaces or convolutions: how their files say which, in both
directions, and what their tensors are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minillm.families.gguf.metadata import File
from minillm.families.gguf.sparse import by_sigmoid
from minillm.families.gguf.sparse import experts as _experts
from minillm.spec import GQA, MLP, Decoder, GatedConv, GatedDeltaNet, Layer, MoE, StateSpace

Values = dict[str, Any]
CONVOLVED, SCANNED = ("lfm2", "lfm2moe"), ("nemotron_h", "nemotron_h_moe", "granitehybrid", "mamba2")
LAYER, MIXER = "blk.{i}.", "layers.{i}.attention."
APART = {"nemotron_h": "nemotron_h_moe"}  # what mixtures of an architecture are called
CONV = {
    "token_embd_norm.weight": "norm.weight",
    f"{LAYER}shortconv.in_proj.weight": f"{MIXER}bcu.weight",
    f"{LAYER}shortconv.conv.weight": f"{MIXER}conv",
    f"{LAYER}shortconv.out_proj.weight": f"{MIXER}output.weight",
}
SCAN = {
    f"{LAYER}ssm_in.weight": f"{MIXER}zxbcd.weight",
    f"{LAYER}ssm_conv1d.weight": f"{MIXER}conv.weight",
    f"{LAYER}ssm_conv1d.bias": f"{MIXER}conv.bias",
    f"{LAYER}ssm_a": f"{MIXER}decay: h 1 -> h",
    f"{LAYER}ssm_dt.bias": f"{MIXER}step",
    f"{LAYER}ssm_d": f"{MIXER}skip: h 1 -> h",
    f"{LAYER}ssm_out.weight": f"{MIXER}output.weight",
}
UNGATED = {
    f"{LAYER}ffn_up.weight": "layers.{i}.ffn.up.weight",
    f"{LAYER}ffn_up_shexp.weight": "layers.{i}.ffn.shared.up.weight",
    f"{LAYER}ffn_latent_down.weight": "layers.{i}.ffn.into.weight",
    f"{LAYER}ffn_latent_up.weight": "layers.{i}.ffn.out_of.weight",
}
OWN = {
    **dict.fromkeys(CONVOLVED, CONV),
    "mamba2": SCAN,
    "granitehybrid": SCAN,
    "nemotron_h": {**SCAN, **UNGATED},
    "nemotron_h_moe": {**SCAN, **UNGATED},
}


def rules(groups: int, fed: Sequence[int]) -> dict[str, str]:
    """Of a model whose norms inside are over so many groups, and whose layers `fed` are a feed-forward alone."""
    norm = {f"{LAYER}ssm_norm.weight": f"{MIXER}norm: g i -> (g i), g={groups}"} if groups else {}
    return {**norm, **{f"blk.{i}.attn_norm.weight": f"layers.{i}.ffn_norm.weight" for i in fed}}


def of_config(values: Mapping[str, Any]) -> tuple[int, list[int]]:
    """What `rules` wants to know, of the config of a file."""
    kinds = values.get("layers_block_type") or []
    groups = next((values[key] for key in ("n_groups", "mamba_n_groups") if values.get(key)), 0)
    return groups, [i for i, kind in enumerate(kinds) if kind in ("mlp", "moe")]


def of_decoder(decoder: Decoder) -> tuple[int, list[int]]:
    """The same of a decoder."""
    groups = next((each.num_groups for each in decoder.mixers if isinstance(each, StateSpace)), 0)
    return groups, [i for i, layer in enumerate(decoder.layers) if layer.attention is None]


def metadata(decoder: Decoder, name: str) -> Values:
    """What a file says of such layers."""
    keys = [next((each.num_kv_heads for each in layer.mixers if isinstance(each, GQA)), 0) for layer in decoder.layers]
    said: Values = {"attention.head_count_kv": np.array(keys, np.int32)}
    conv = next((each for each in decoder.mixers if isinstance(each, GatedConv)), None)
    if conv is not None:
        said["shortconv.l_cache"] = conv.conv_kernel
    mamba = next((each for each in decoder.mixers if isinstance(each, StateSpace)), None)
    if mamba is not None:
        said |= {
            "ssm.conv_kernel": mamba.conv_kernel,
            "ssm.state_size": mamba.state_size,
            "ssm.group_count": mamba.num_groups,
            "ssm.time_step_rank": mamba.num_heads,
            "ssm.inner_size": mamba.num_heads * mamba.head_dim,
        }
    if not any(isinstance(layer.ffn, MoE) for layer in decoder.layers):
        said["feed_forward_length"] = _width(decoder.layers[0])
    if name == "granitehybrid":
        turns = any(each.rope is not None for each in decoder.attentions)
        return {**said, "rope.scaling.finetuned": turns}
    if name == "mamba2":
        return {**said, "attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}
    if name.startswith("nemotron_h"):
        said["feed_forward_length"] = np.array([_width(layer) for layer in decoder.layers], np.int32)
        latent = next((each.ffn.latent for each in decoder.layers if isinstance(each.ffn, MoE)), None)
        said |= {"moe_latent_size": latent} if latent else {}
        said["attention.layer_norm_epsilon"] = float(decoder.final_norm.eps)  # which it asks for, of all its norms
    return said


def corrected(decoder: Decoder) -> Values:
    """What a file says of Gated DeltaNets."""
    mixers = [layer.attention for layer in decoder.layers]
    net = next((each for each in mixers if isinstance(each, GatedDeltaNet)), None)
    if net is None:
        return {}
    return {
        "ssm.conv_kernel": net.conv_kernel,
        "ssm.state_size": net.k_dim,
        "ssm.group_count": net.num_k_heads,
        "ssm.time_step_rank": net.num_v_heads,
        "ssm.inner_size": net.num_v_heads * net.v_dim,
        "full_attention_interval": next(i for i, each in enumerate(mixers, 1) if isinstance(each, GQA)),
    }


def _width(layer: Layer) -> int:
    return 0 if layer.ffn is None else layer.ffn.intermediate_size


def architecture(name: str, decoder: Decoder) -> str:
    """That of a mixture, where it has another name."""
    mixture = any(isinstance(layer.ffn, MoE) for layer in decoder.layers)
    return APART.get(name, name) if mixture else name


def lfm2(file: File) -> Values:
    keys = each_layer(file, "attention.head_count_kv")
    return {
        "model_type": "lfm2",
        "layer_types": ["full_attention" if each else "conv" for each in keys],
        "num_key_value_heads": max(keys),
        "conv_L_cache": file.size("shortconv.l_cache"),
        "block_auto_adjust_ff_dim": False,
        "norm_eps": file.need("attention.layer_norm_rms_epsilon"),
        "rms_norm_eps": None,
    }


def lfm2_moe(file: File) -> Values:
    by_sigmoid(file)
    made = {key: value for key, value in lfm2(file).items() if key != "block_auto_adjust_ff_dim"}
    dense = file.get("leading_dense_block_count", 0)
    return {**made, "model_type": "lfm2_moe", **_experts(file), "num_dense_layers": dense}


def nemotron_h(file: File) -> Values:
    keys, widths = each_layer(file, "attention.head_count_kv"), each_layer(file, "feed_forward_length")
    mixture = bool(file.get("expert_count", 0))
    fed = "moe" if mixture else "mlp"
    kinds = [fed if width else "attention" if key else "mamba" for key, width in zip(keys, widths, strict=True)]
    values = {
        "model_type": "nemotron_h",
        "layers_block_type": kinds,
        "num_key_value_heads": max(keys) or 1,
        "intermediate_size": max(widths) or 1,
        **_scan(file, "mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
        **epsilon(file),
    }
    if not mixture:
        return values
    by_sigmoid(file)
    file.get("expert_shared_count")
    return {
        **values,
        **_experts(file, "n_routed_experts"),
        "moe_shared_expert_intermediate_size": file.need("expert_shared_feed_forward_length"),
        "moe_latent_size": file.get("moe_latent_size") or None,
        "routed_scaling_factor": file.get("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": file.get("expert_weights_norm", False),
        "n_group": file.size("expert_group_count", 1) or 1,
        "topk_group": file.size("expert_group_used_count", 1) or 1,
    }


def mamba2(file: File) -> Values:
    nothing = dict.fromkeys(("num_attention_heads", "num_key_value_heads", "intermediate_size", "rope_theta"))
    hidden, inner = file.size("embedding_length"), file.size("ssm.inner_size")
    return {
        "model_type": "mamba2",
        **nothing,
        **_scan(file, "num_heads", "head_dim", "n_groups", "state_size", "conv_kernel"),
        "expand": inner / (hidden or 1),
        **epsilon(file),
    }


def granite_hybrid(file: File) -> Values:
    keys = each_layer(file, "attention.head_count_kv")
    head, inner, hidden = file.get("attention.key_length"), file.size("ssm.inner_size"), file.size("embedding_length")
    values = {
        "model_type": "granitemoehybrid",
        "layer_types": ["attention" if each else "mamba" for each in keys],
        "num_key_value_heads": max(keys) or 1,
        "position_embedding_type": "rope" if file.get("rope.scaling.finetuned", False) else None,
        "embedding_multiplier": file.get("embedding_scale", 1.0),
        "attention_multiplier": file.get("attention.scale", 0.0) or (head or file.head()) ** -0.5,
        "residual_multiplier": file.get("residual_scale", 1.0),
        "logits_scaling": file.get("logit_scale", 1.0),
        "mamba_expand": inner / (hidden or 1),
        **_scan(file, "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
    }
    if not file.get("expert_count", 0):
        return {**values, "num_local_experts": 0, "shared_intermediate_size": file.size("feed_forward_length")}
    return {
        **values,
        "num_local_experts": file.need("expert_count"),
        "num_experts_per_tok": file.need("expert_used_count"),
        "shared_intermediate_size": file.need("expert_shared_feed_forward_length"),
    }


def epsilon(file: File) -> Values:
    found = file.get("attention.layer_norm_epsilon", file.get("attention.layer_norm_rms_epsilon"))
    return {"layer_norm_epsilon": file.need("attention.layer_norm_rms_epsilon") if found is None else found,
            "rms_norm_eps": None}  # fmt: skip


def _scan(file: File, heads: str, size: str, groups: str, state: str, kernel: str) -> Values:
    """The sizes of state spaces, under the names that a family has for them."""
    count, inner = file.size("ssm.time_step_rank"), file.size("ssm.inner_size")
    if not count or inner % count:
        raise ValueError(f"{file.architecture}.ssm.inner_size {inner} is no multiple of {count} heads")
    return {
        heads: count,
        size: inner // count,
        groups: file.size("ssm.group_count"),
        state: file.size("ssm.state_size"),
        kernel: file.size("ssm.conv_kernel"),
    }


def each_layer(file: File, key: str) -> list[int]:
    """A number for each layer."""
    found, layers = file.each(key), file.size("block_count")
    if found is None or not all(type(each) is int for each in found):
        raise ValueError(f"{file.architecture}.{key} is missing, or has other than whole numbers; download it again")
    found = found * layers if len(found) == 1 else found
    if len(found) != layers:
        raise ValueError(f"{file.architecture}.{key} has {len(found)} numbers for {layers} layers")
    return found


def mixed(decoder: Decoder) -> bool:
    """Whether a model has layers that are MLPs and others that are mixtures: their files do not tell them apart."""
    ffns = {type(layer.ffn) for layer in decoder.layers if layer.attention is None}
    return ffns >= {MLP, MoE}


def unbiased(decoder: Decoder) -> bool:
    """Whether state spaces have other biases than a convolution's."""
    return any(isinstance(each, StateSpace) and (each.bias or not each.conv_bias) for each in decoder.mixers)


ARCHITECTURES = {
    "lfm2": lfm2,
    "lfm2moe": lfm2_moe,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "granitehybrid": granite_hybrid,
    "mamba2": mamba2,
}
