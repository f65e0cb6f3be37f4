"""Llama-Nemotron: transformers' Llama, whose layers are as wide as `block_configs` says, or lack a part."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class Nothing(nn.Module):
    """In place of attention: adds nothing."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class Silent(nn.Module):
    """In place of an MLP."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def build(values: dict[str, Any]) -> Any:
    config = transformers.LlamaConfig(**{**values, "intermediate_size": 8, "num_key_value_heads": None})
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config)
    for i, block in enumerate(values["block_configs"]):
        own, attention, ffn = copy.deepcopy(config), block["attention"], block["ffn"]
        own.num_key_value_heads = config.num_attention_heads // attention.get("n_heads_in_group", 1)
        own.intermediate_size = int(2 * ffn.get("ffn_mult", 1) * config.hidden_size / 3)
        own.intermediate_size += -own.intermediate_size % 256
        layer = model.model.layers[i] = LlamaDecoderLayer(own, i)
        if attention["no_op"]:
            layer.self_attn, layer.input_layernorm = Nothing(), nn.Identity()
        if ffn["no_op"]:
            layer.mlp, layer.post_attention_layernorm = Silent(), nn.Identity()
    config.block_configs = values["block_configs"]
    return model


def write(model: Any, folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    (folder / "oracle").mkdir()
    save_file(state, folder / "oracle/state.safetensors")
    save_file(state, folder / "model.safetensors")
    unstated = dict.fromkeys(("head_dim", "num_key_value_heads", "intermediate_size"))
    values = {**model.config.to_dict(), **unstated}
    (folder / "config.json").write_text(json.dumps(values))
