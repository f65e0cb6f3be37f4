"""Llama, except: LayerNorms; attention and MLP run side by side, behind one norm or behind two; q, k and v lie in one
tensor; an MLP without a gate. Of the 7B all heads share one key and value; the others have several, and rows of their
tensor are those of a group of heads, its key and its value, then of the next.

Falcon 7B, 11B, 40B, 180B (Almazrouei et al., arXiv:2311.16867). RW-1B and RW-7B are refused: their scores fall with the
distance in steps of bfloat16.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, MLP, Decoder, LayerNorm

FIXED = {"parallel_attn": True, "alibi": False, "bias": False}
DEFAULTS = {
    **llama.DEFAULTS,
    **FIXED,
    "new_decoder_architecture": False,
    "multi_query": True,
    "num_ln_in_parallel_attn": None,
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_kv_heads": None,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
LAYER, OURS = "transformer.h.{i}.", "layers.{i}."


def rules(config: Config) -> dict[str, str]:
    heads, kv_heads, size = _heads(config)
    grouped = f": {kv_heads} x {heads // kv_heads * size} {size} {size} -> parts" if kv_heads > 1 else ""
    norms = {f"{LAYER}ln_attn": f"{OURS}attention_norm", f"{LAYER}ln_mlp": f"{OURS}ffn_norm"}
    norms = norms if _two_norms(config) else {f"{LAYER}input_layernorm": f"{OURS}attention_norm"}
    return {
        "transformer.word_embeddings.weight": "embedding.weight",
        "lm_head.weight": "head.weight",
        f"{LAYER}self_attention.query_key_value.weight": f"{OURS}attention.qkv.weight{grouped}",
        f"{LAYER}self_attention.dense.weight": f"{OURS}attention.out.weight",
        f"{LAYER}mlp.dense_h_to_4h.weight": f"{OURS}ffn.up.weight",
        f"{LAYER}mlp.dense_4h_to_h.weight": f"{OURS}ffn.down.weight",
        **common.weights_and_biases({"transformer.ln_f": "norm", **norms}),
    }


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    heads, kv_heads, head_dim = _heads(config)
    attention = GQA(heads, kv_heads, head_dim, rotary.rope(config, head_dim))
    width = config.optional_size("ffn_hidden_size") or 4 * config.size("hidden_size")
    mlp = MLP(width, config.choice("activation", common.ACTIVATIONS))
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_epsilon"))
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return common.every_layer(made, ffn_norm=norm if _two_norms(config) else None, parallel=True)


def _heads(config: Config) -> tuple[int, int, int]:
    """(heads, heads of keys, their size)."""
    heads, _, head_dim = common.heads(config)
    stated = config.optional_size("num_kv_heads")  # the older have it too, where transformers wrote them
    if not config.flag("new_decoder_architecture"):
        common.only(config, {"multi_query": True, "num_ln_in_parallel_attn": None})
        return heads, 1, head_dim
    config.flag("multi_query")
    if heads % (kv_heads := stated or heads):
        raise ValueError(f"config.json: {heads} attention heads are no multiple of num_kv_heads {kv_heads}")
    return heads, kv_heads, head_dim


def _two_norms(config: Config) -> bool:
    if not config.flag("new_decoder_architecture"):
        return False
    if (stated := config.get("num_ln_in_parallel_attn")) not in (None, 1, 2):
        raise ValueError(f"config.json: num_ln_in_parallel_attn is {shown(stated)}, expected 1 or 2")
    return stated != 1
