"""Llama, except: scores fall with the distance between query and key, and nothing turns (ALiBi); LayerNorms without
bias; an MLP without a gate; q, k and v lie in one tensor and may be clamped; keys of the config have other names, some
inside `attn_config`. The head is the embedding.

MPT-7B, MPT-30B, StoryWriter (MosaicML, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families.shared import alibi, common
from minillm.spec import GQA, MLP, Decoder, LayerNorm, Scores

FIXED = {"attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False, "alibi": True, "alibi_bias_max": 8,
         "expansion_ratio": 4, "no_bias": True, "logit_scale": None, "attn_uses_sequence_id": False}  # fmt: skip
# Of training, or of what is not there beside ALiBi.
AS_EVERYWHERE = ("learned_pos_emb", "attn_pdrop", "emb_pdrop", "resid_pdrop", "attn_impl", "init_device", "norm_type",
                 "embedding_fraction", "verbose", "init_config", "tokenizer_name")  # fmt: skip
DEFAULTS = {
    **FIXED,
    **dict.fromkeys(AS_EVERYWHERE),
    "vocab_size": 50368,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "clip_qkv": None,
    "softmax_scale": None,
    "tie_word_embeddings": True,
}
LAYER, OURS = "transformer.blocks.{i}.", "layers.{i}."
RULES = {
    "transformer.wte.weight": "embedding.weight",
    "lm_head.weight": "head.weight",
    "transformer.norm_f.weight": "norm.weight",
    f"{LAYER}norm_1.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}norm_2.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}attn.Wqkv.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}attn.out_proj.weight": f"{OURS}attention.out.weight",
    f"{LAYER}ffn.up_proj.weight": f"{OURS}ffn.up.weight",
    f"{LAYER}ffn.down_proj.weight": f"{OURS}ffn.down.weight",
}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of one level."""
    attention = values.get("attn_config") or {}
    if not isinstance(attention, dict):
        raise ValueError("config.json: attn_config must be an object")
    return {**attention, **{key: value for key, value in values.items() if key != "attn_config"}}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(AS_EVERYWHERE)
    heads, _, head_dim = common.heads(config)
    clip, scale = (config.get(key) and config.number(key) for key in ("clip_qkv", "softmax_scale"))
    scores = Scores(scale, slopes=alibi.slopes(heads))
    attention = GQA(heads, heads, head_dim, None, clip=clip, scores=scores)
    mlp, layers = MLP(4 * config.size("hidden_size"), "gelu"), common.num_layers(config)
    norm = LayerNorm(config.number("layer_norm_epsilon"), bias=False)
    return common.decoder(config, [attention] * layers, [mlp] * layers, norm)
