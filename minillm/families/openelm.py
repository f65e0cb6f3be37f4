"""Llama, except: each layer has its own number of heads and its own MLP width, which grow with depth; each head of q
and k is normalised; q, k and v lie in one tensor, gate and up in another.

OpenELM 270M to 3B (Mehta et al., arXiv:2404.14619). It uses Llama 2's tokenizer. transformers has no class for it: the
tests compare with Qwen3's, given these sizes layer by layer.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config, shown
from minillm.families.shared import common
from minillm.spec import GQA, Decoder, GatedMLP, Layer, Norm, QKNorm, Rope

FIXED = {"ffn_with_glu": True, "normalization_layer_name": "rms_norm", "normalize_qk_projections": True}
# What the lists of heads were made from, and how far a table of angles reaches at first.
UNUSED = ("num_gqa_groups", "qkv_multipliers", "rope_max_length")
EPS = 1e-6
DEFAULTS: dict[str, Any] = {
    **FIXED,
    **dict.fromkeys(UNUSED),
    "vocab_size": 32000, "model_dim": 2048, "num_transformer_layers": 12, "head_dim": 128, "max_context_length": 2048,
    "num_query_heads": None, "num_kv_heads": None, "ffn_multipliers": None, "ffn_dim_divisor": 256,
    "activation_fn_name": "swish", "rope_freq_constant": 10000.0, "share_input_output_layers": False,
    "tie_word_embeddings": None,
}  # fmt: skip
LAYER, OURS = "transformer.layers.{i}.", "layers.{i}."
RULES = {
    "transformer.token_embeddings.weight": "embedding.weight",
    "transformer.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}attn_norm.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}attn.qkv_proj.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}attn.q_norm.weight": f"{OURS}attention.q_norm.weight",
    f"{LAYER}attn.k_norm.weight": f"{OURS}attention.k_norm.weight",
    f"{LAYER}attn.out_proj.weight": f"{OURS}attention.out.weight",
    f"{LAYER}ffn_norm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}ffn.proj_1.weight": f"{OURS}ffn.gate_up.weight",
    f"{LAYER}ffn.proj_2.weight": f"{OURS}ffn.down.weight",
}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(UNUSED)
    queries, keys, factors = (_listed(config, key) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers"))
    head_dim, norm = config.size("head_dim"), Norm(EPS)
    rope, act = Rope(head_dim, config.number("rope_freq_constant")), config.choice("activation_fn_name", _ACTIVATIONS)
    layers = []
    for heads, kv_heads, factor in zip(queries, keys, factors, strict=True):
        if type(heads) is not int or type(kv_heads) is not int or heads % kv_heads:
            raise ValueError(f"config.json: {shown(heads)} query heads are no multiple of {shown(kv_heads)} kv heads")
        attention = GQA(heads, kv_heads, head_dim, rope, qk_norm=QKNorm(norm))
        layers.append(Layer(norm, attention, norm, GatedMLP(_width(config, factor), act)))
    return Decoder(
        vocab_size=config.size("vocab_size"),
        hidden_size=config.size("model_dim"),
        layers=tuple(layers),
        final_norm=norm,
        tied=config.flag("share_input_output_layers") and config.get("tie_word_embeddings") is not False,
        context=config.positions("max_context_length"),
    )


_ACTIVATIONS = {**common.ACTIVATIONS, "swish": "silu"}


def _listed(config: Config, key: str) -> list[Any]:
    found, layers = config.get(key), config.size("num_transformer_layers", common.MAX_LAYERS)
    if not isinstance(found, list) or len(found) != layers or any(type(n) not in (int, float) or n <= 0 for n in found):
        raise ValueError(f"config.json: {key} must list a positive number for each of the {layers} layers")
    return found


def _width(config: Config, factor: float) -> int:
    """Rounded to a multiple, and up where that takes more than a tenth away."""
    exact, unit = factor * config.size("model_dim"), config.size("ffn_dim_divisor")
    near = max(unit, int(exact + unit / 2) // unit * unit)
    return near + unit if near < 0.9 * exact else near
