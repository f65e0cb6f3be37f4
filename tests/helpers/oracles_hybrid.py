"""Checkpoints of recurrent families in the published layout, where transformers 5.23 does not write that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

NORMS = {"input_layernorm": "attention_layer_norm", "post_attention_layernorm": "feedforward_layer_norm"}


def publish_olmo_hybrid(model: Any, folder: Path) -> None:
    """transformers cuts the convolution into three equal parts, and calls the norms of attention as the others'."""
    config = model.config
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    sizes = keys, keys, config.linear_num_value_heads * config.linear_value_head_dim
    recurrent = {f"layers.{i}." for i, kind in enumerate(config.layer_types) if kind == "linear_attention"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if any(layer in name for layer in recurrent):
            for own, published in NORMS.items():
                name = name.replace(own, published)
        if ".conv1d." in name:
            parts = zip("qkv", tensor.split(sizes), strict=True)
            tensors |= {name.replace("conv1d", f"{part}_conv1d"): each.clone() for part, each in parts}
        else:
            tensors[name] = tensor.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def after(model: Any, tokens: Tensor, past: Any, length: int) -> tuple[Any, Any]:
    """What a model makes of tokens behind `length` others, and what it keeps. Mamba calls that otherwise; Bamba of
    transformers 5.23 counts positions from 0 in each call, unless it is told them, as its `generate` does."""
    kept = "cache_params" if model.config.model_type in ("mamba", "falcon_mamba", "mamba2") else "past_key_values"
    given = {"position_ids": torch.arange(length, length + tokens.shape[1])[None]}
    if model.config.model_type == "recurrent_gemma":  # gives nothing back: states are its modules', keys its caller's
        past = transformers.DynamicCache(config=model.config) if past is None else past
        return model(tokens, use_cache=True, past_key_values=past, **given), past
    reply = model(tokens, use_cache=True, **{kept: past}, **(given if model.config.model_type == "bamba" else {}))
    return reply, getattr(reply, kept)


PUBLISH = {"olmo_hybrid": publish_olmo_hybrid}
