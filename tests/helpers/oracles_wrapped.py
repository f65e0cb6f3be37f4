"""transformers' models that read images too, given text alone; their checkpoints in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZES = {"hidden_size": 16, "intermediate_size": 16, "patch_size": 4}
MERGED = {**SIZES, "depth": 1, "num_heads": 2, "out_hidden_size": 48}
DEEPER = {**MERGED, "depth": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
LAYERS = {**SIZES, "num_hidden_layers": 1, "num_attention_heads": 2}
# A tower as small as can be, which stays unused.
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 48, "mlp_ratio": 2, "patch_size": 4},
    "qwen2_5_vl": MERGED,
    "qwen3_vl": DEEPER,
    "qwen3_vl_moe": DEEPER,
    "mistral3": {**LAYERS, "head_dim": 8, "image_size": 16},
    "kimi_k25": LAYERS,
    "exaone4_5": {**MERGED, "num_key_value_heads": 1},
    "minimax_m3_vl": {**LAYERS, "num_attention_heads": 1, "image_size": 16, "projection_dim": 16},
    "muse_glimmer": {**LAYERS, "pos_emb_height": 4, "pos_emb_width": 4},
    "glm5_next": {**MERGED, "out_hidden_size": 48},
    "inkling_mm_model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4},
    "step3p7": {**LAYERS, "image_size": 16},
    "llava": {**LAYERS, "model_type": "pixtral", "head_dim": 8, "image_size": 16},
}
HEARING = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
AUDIO: dict[str, dict[str, Any]] = {"qwen2_audio": {**HEARING, "num_mel_bins": 8, "max_source_positions": 20}}
HEARD = {"inkling_mm_model": {"n_mel_bins": 2, "mel_vocab_size": 3}}  # beside what sees
TEXT = {"mistral3": "mistral", "kimi_k25": "deepseek_v3", "llava": "mistral", "qwen2_audio": "qwen2"}
TEXT["exaone4_5"] = "exaone4"
WRAPPED = {*VISION, *AUDIO}


def build(family: str, values: dict[str, Any], **options: Any) -> Any:
    text = {**({"model_type": TEXT[family]} if family in TEXT else {}), **values}
    tied = values.get("tie_word_embeddings", False)
    tower = {"audio_config": AUDIO[family]} if family in AUDIO else {"vision_config": VISION[family]}
    tower |= {"audio_config": HEARD[family]} if family in HEARD else {}
    config = transformers.AutoConfig.for_model(family, text_config=text, **tower, tie_word_embeddings=tied)
    return kind(family).from_config(config, **options)


def kind(family: str) -> Any:
    """The class that a family's models are built by."""
    return transformers.AutoModelForMultimodalLM if family in AUDIO else transformers.AutoModelForImageTextToText


def load(folder: Path, **options: Any) -> Any:
    family = json.loads((folder / "config.json").read_text())["model_type"]
    return kind(family).from_pretrained(folder, **options).eval()


def publish(folder: Path) -> None:
    """What transformers 5.23 writes otherwise than it was published, and reads: stacked experts lie the other way
    around, and layers of text are called as the tower's."""

    def published(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        stacked = name.startswith("model.language_model.") and ".mlp.experts." in name and tensor.dim() == 3
        name = name.replace("language_model.model.blocks.", "language_model.model.layers.")
        return name, tensor.transpose(1, 2).contiguous() if stacked else tensor

    path = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor] = load_file(path)
    save_file(dict(published(*each) for each in tensors.items()), path, metadata={"format": "pt"})
