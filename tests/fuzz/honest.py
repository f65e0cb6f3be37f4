"""The checkpoint that every case begins with, in code: a Llama of one layer with a vocabulary of 40."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": None,
}
SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.post_attention_layernorm.weight": (16,),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.k_proj.weight": (8, 16),
    "model.layers.0.self_attn.v_proj.weight": (8, 16),
    "model.layers.0.self_attn.o_proj.weight": (16, 16),
    "model.layers.0.mlp.gate_proj.weight": (24, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 24),
    "model.norm.weight": (16,),
    "lm_head.weight": (40, 16),
}
HALVES = {"A": (2, 16), "B": (16, 2)}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
WORDS = ["<unk>", "<s>", "</s>", " ", *"abcdefghijklmnopqrstuvwxyz", "th", "he", "in", "er", "an"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "Fuse"},
    "model": {
        "type": "BPE",
        "unk_token": "<unk>",
        "vocab": {word: i for i, word in enumerate(WORDS)},
        "merges": [[pair[0], pair[1]] for pair in WORDS if len(pair) == 2],
    },
}
TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in SHAPES.items()}


def adapter() -> dict[str, Tensor]:
    """A LoRA adapter of one matrix."""
    stem, generator = "base_model.model.model.layers.0.self_attn.q_proj.lora_", torch.Generator().manual_seed(1)
    return {f"{stem}{half}.weight": torch.randn(shape, generator=generator) for half, shape in HALVES.items()}


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


FILES = {
    "config.json": as_bytes(CONFIG),
    "model.safetensors": safetensors.torch.save(tensors(), {"format": "pt"}),
    "tokenizer.json": as_bytes(TOKENIZER),
    "tokenizer_config.json": as_bytes(TOKENIZER_CONFIG),
    "adapter/adapter_config.json": as_bytes(ADAPTER),
    "adapter/adapter_model.safetensors": safetensors.torch.save(adapter()),
}
