"""OpenELM: Qwen3 of transformers, each of whose layers has sizes of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

KEYS = {
    "hidden_size": "model_dim",
    "num_hidden_layers": "num_transformer_layers",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_context_length",
    "tie_word_embeddings": "share_input_output_layers",
}
LISTS = "num_query_heads num_kv_heads ffn_multipliers ffn_dim_divisor head_dim".split()
NAMES = {"model.embed_tokens": "transformer.token_embeddings", "model.norm": "transformer.norm", "self_attn": "attn",
         "model.layers": "transformer.layers", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "o_proj": "out_proj", "mlp.down_proj": "ffn.proj_2", "q_proj": "qkv_proj",
         "mlp.gate_proj": "ffn.proj_1"}  # fmt: skip


def build(values: dict[str, Any]) -> Any:
    """From a row's values, or from those of a published config.json."""
    values = {**values, **{ours: values[theirs] for ours, theirs in KEYS.items() if theirs in values}}
    config = transformers.Qwen3Config(**{**values, "rms_norm_eps": 1e-6})  # which no config.json says
    config._attn_implementation = "eager"
    model = transformers.Qwen3ForCausalLM(config)
    for i in range(config.num_hidden_layers):
        own, unit = copy.deepcopy(config), values["ffn_dim_divisor"]
        own.num_attention_heads, own.num_key_value_heads = values["num_query_heads"][i], values["num_kv_heads"][i]
        exact = values["ffn_multipliers"][i] * config.hidden_size
        own.intermediate_size = max(unit, int(exact + unit / 2) // unit * unit)
        own.intermediate_size += unit if own.intermediate_size < 0.9 * exact else 0
        model.model.layers[i] = Qwen3DecoderLayer(own, i)
    return model


def write(model: Any, folder: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    (folder / "oracle").mkdir()
    save_file(state, folder / "oracle/state.safetensors")
    published = {}
    for name, tensor in state.items():
        if "q_proj" in name or "gate_proj" in name:
            others = ("k_proj", "v_proj") if "q_proj" in name else ("up_proj",)
            first = "q_proj" if "q_proj" in name else "gate_proj"
            tensor = torch.cat([tensor, *(state[name.replace(first, other)] for other in others)])
        if not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            for theirs, to in NAMES.items():
                name = name.replace(theirs, to)
            published[name] = tensor.clone()
    save_file(published, folder / "model.safetensors")
    values = {theirs: getattr(model.config, ours) for ours, theirs in KEYS.items()}
    values |= {key: getattr(model.config, key) for key in LISTS}
    fixed = {"rope_freq_constant": 10000, "normalize_qk_projections": True, "ffn_with_glu": True}
    (folder / "config.json").write_text(json.dumps({**values, **fixed}))
