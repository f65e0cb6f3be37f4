"""Families that transformers has no class for, and whose mathematics it has under another name: that model, written
with the keys and the tensors' names that the family publishes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

# The model_type whose class computes the same.
CLASS = {
    "exaone": "llama",
    "qwen": "qwen2",
    "chatglm": "glm",
    "mimo": "qwen2",
    "baichuan": "llama",
    "internlm2": "llama",
    "minicpm": "granite",
}
LAYER = r"model\.layers\.(\d+)\."
GPT = {r"^model\.embed_tokens": "transformer.wte", r"^model\.norm": "transformer.ln_f", LAYER: r"transformer.h.\1."}
NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
# What to put in place of a pattern in the class's names; "q+k+v" are the three under each other.
NAMES: dict[str, dict[str, str]] = {
    "exaone": {
        **GPT, **NORMS, r"self_attn\.o_proj": "attn.attention.out_proj", r"self_attn\.": "attn.attention.",
        "gate_proj": "c_fc_0", "up_proj": "c_fc_1", "down_proj": "c_proj",
    },
    "qwen": {
        **GPT, **NORMS, r"self_attn\.q\+k\+v": "attn.c_attn", r"self_attn\.o_proj": "attn.c_proj", "up_proj": "w1",
        "gate_proj": "w2", r"down_proj": "c_proj",
    },
    "chatglm": {
        r"^model\.embed_tokens": "transformer.embedding.word_embeddings", "^lm_head": "transformer.output_layer",
        r"^model\.norm": "transformer.encoder.final_layernorm", LAYER: r"transformer.encoder.layers.\1.",
        r"self_attn\.q\+k\+v": "self_attention.query_key_value", r"self_attn\.o_proj": "self_attention.dense",
        "gate_up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h",
    },
    "mimo": {},
    "minicpm": {},
    "baichuan": {r"q\+k\+v": "W_pack"},
    "internlm2": {
        "embed_tokens": "tok_embeddings", "^lm_head": "output", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", r"self_attn\.q\+k\+v": "attention.wqkv",
        r"self_attn\.o_proj": "attention.wo", r"mlp\.gate_proj": "feed_forward.w1", r"mlp\.up_proj": "feed_forward.w3",
        r"mlp\.down_proj": "feed_forward.w2",
    },
}  # fmt: skip


def build(family: str, values: dict[str, Any], **options: Any) -> Any:
    config = transformers.AutoConfig.for_model(CLASS[family], **values)
    return placed(transformers.AutoModelForCausalLM.from_config(config, **options))


def load(folder: Path, **options: Any) -> Any:
    return placed(transformers.AutoModelForCausalLM.from_pretrained(folder / "oracle", **options).eval())


def placed(model: Any) -> Any:
    """A Llama whose scores fall with the distance as BLOOM's, and which turns nothing, if its config says `falls`."""

    def fall(module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, (cos, sin) = named["attention_mask"], named["position_embeddings"]
        lost = build_alibi_tensor(mask.new_ones(1, mask.shape[-1]), module.config.num_attention_heads, torch.float32)
        turned = torch.ones_like(cos), torch.zeros_like(sin)
        return given, {**named, "attention_mask": mask + lost.to(mask.dtype), "position_embeddings": turned}

    for layer in model.model.layers if getattr(model.config, "falls", False) else ():
        layer.self_attn.register_forward_pre_hook(fall, with_kwargs=True)
    return model


def save(model: Any, folder: Path, family: str) -> None:
    model.save_pretrained(folder / "oracle")
    tensors = load_file(folder / "oracle/model.safetensors")
    if "q+k+v" in " ".join(NAMES[family]).replace("\\", ""):
        tensors = joined(tensors, model.config.num_key_value_heads if family == "internlm2" else 1)
    published = {renamed(name, NAMES[family]): tensor for name, tensor in tensors.items()}
    published |= {"model.mtp_layers.0.input_layernorm.weight": torch.ones(2)} if family == "mimo" else {}
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(keys(model.config, family)))


def joined(tensors: dict[str, Tensor], groups: int) -> dict[str, Tensor]:
    """q, k and v of a layer in one tensor: of each group its part of q, then of k, then of v."""
    made = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")].unflatten(0, (groups, -1)) for part in "qkv"]
            made[name.replace("q_proj", "q+k+v")] = torch.cat(parts, 1).flatten(0, 1)
        elif not any(f".{part}_proj." in name for part in "kv"):
            made[name] = tensor
    return made


def renamed(name: str, patterns: dict[str, str]) -> str:
    for pattern, to in patterns.items():
        name = re.sub(pattern, to, name)
    return name


def keys(config: Any, family: str) -> dict[str, Any]:
    """The same sizes in the words of the family's config.json."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_dim, theta = getattr(config, "head_dim", None) or hidden // heads, config.rope_parameters["rope_theta"]
    every = "hidden_size num_attention_heads tie_word_embeddings bos_token_id eos_token_id pad_token_id dtype".split()
    common = {key: config.to_dict()[key] for key in every}
    eps, width, positions = config.rms_norm_eps, config.intermediate_size, config.max_position_embeddings
    sizes = {"vocab_size": config.vocab_size, "max_position_embeddings": positions}
    if family == "exaone":
        words = "num_key_value_heads head_dim intermediate_size rope_parameters".split()
        scaled = {key: getattr(config, key) for key in words}
        own = {"num_layers": config.num_hidden_layers, "activation_function": config.hidden_act}
        return {**common, **sizes, **scaled, **own, "layer_norm_epsilon": eps}
    if family == "qwen":
        own = {"num_hidden_layers": config.num_hidden_layers, "intermediate_size": 2 * width, "kv_channels": head_dim}
        return {**common, **sizes, **own, "layer_norm_epsilon": eps, "rotary_emb_base": theta, "seq_length": positions}
    if family == "chatglm":
        return {
            **common, "num_layers": config.num_hidden_layers, "ffn_hidden_size": width, "kv_channels": head_dim,
            "padded_vocab_size": config.vocab_size, "multi_query_group_num": config.num_key_value_heads,
            "seq_length": positions, "layernorm_epsilon": eps, "rope_ratio": theta / 10000,
            "add_qkv_bias": config.attention_bias,
        }  # fmt: skip
    values = config.to_dict()
    if family == "internlm2":
        return {**{key: value for key, value in values.items() if "bias" not in key}, "bias": values["attention_bias"]}
    if family == "minicpm":
        made = {key: value for key, value in values.items() if "multiplier" not in key and "bias" not in key}
        del made["logits_scaling"]
        depth, base = config.residual_multiplier * config.num_hidden_layers**0.5, hidden / config.logits_scaling
        return {**made, "scale_depth": depth, "dim_model_base": base, "scale_emb": config.embedding_multiplier}
    if family == "baichuan":
        known = {key: value for key, value in values.items() if key != "falls"}
        if values.get("falls"):
            del known["max_position_embeddings"]
        return {**known, "model_max_length": positions}
    return {**values, "head_dim": head_dim, "attention_bias": True}
