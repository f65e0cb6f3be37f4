"""Tiny transformers models with every parameter and buffer random, saved to disk in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import minillm

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "yarn": YARN,
    "yarn all": {
        **YARN,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 0.9,
    },
    "yarn mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.3},
}

# Every family with what sets it apart, by a name for the test's report.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 6}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 20, "tie_word_embeddings": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    **{f"llama-{name}": ("llama", {"rope_parameters": {**rope, "rope_theta": 500.0}}) for name, rope in ROPES.items()},
    "llama-dynamic-beyond": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 24},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-head-dim": ("mistral", {"sliding_window": 7, "head_dim": 12}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-bias": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "qwen3",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter: matrices so that activations keep their size, norms around one, biases well away from zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        is_norm = parameter.dim() == 1 and bool((parameter == 1).all())
        parameter.data.copy_(noise * scale + (1.0 if is_norm else 0.0))


def save(folder: Path, family: str, overrides: dict[str, Any], seed: int = 0) -> Any:
    """Build, randomise and save a model; returns it loaded from disk again, fp32 and eager."""
    config = transformers.AutoConfig.for_model(family, **{**BASE, **overrides})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, seed)
    model.save_pretrained(folder)
    return reference(folder)


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The same folder in transformers, in the plainest of its implementations."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return loaded.eval()


def edit_config(folder: Path, **changes: Any) -> None:
    """Overwrite keys of a saved config.json; a value of ... removes the key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def tokens(vocab_size: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, tokens_BT: Tensor) -> Tensor:
    """The fp32 logits of a transformers model."""
    return model(tokens_BT).logits.float()


def refused(folder: Path, *messages: str) -> None:
    """Loading a folder fails with one error that says all of this."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        minillm.load(folder)
    for message in messages:
        assert message in str(caught.value)
