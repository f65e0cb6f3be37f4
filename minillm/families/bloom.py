"""Llama, except: scores fall with the distance between query and key, and nothing turns (ALiBi); LayerNorms, one of
them on the embedding; an MLP without a gate; biases everywhere; q, k and v lie in one tensor, head by head. The head is
the embedding.

BLOOM 560M to 176B, BLOOMZ (BigScience, arXiv:2211.05100).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families.shared import alibi, common
from minillm.spec import GQA, MLP, Decoder, Embedding, LayerNorm, Scores

FIXED = {"apply_residual_connection_post_layernorm": False}
# How its authors' code multiplies.
AS_EVERYWHERE = ("slow_but_exact", "attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion",
                 "skip_bias_add", "skip_bias_add_qkv", "offset_alibi", "seq_length", "n_inner")  # fmt: skip
DEFAULTS = {
    **FIXED,
    **dict.fromkeys(AS_EVERYWHERE),
    "vocab_size": 250880,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,  # of training: there is no end of positions
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
LAYER = "transformer.h.{i}."
NAMED = {
    "transformer.word_embeddings_layernorm": "embedding_norm",
    "transformer.ln_f": "norm",
    f"{LAYER}input_layernorm": "layers.{i}.attention_norm",
    f"{LAYER}post_attention_layernorm": "layers.{i}.ffn_norm",
    f"{LAYER}self_attention.dense": "layers.{i}.attention.out",
    f"{LAYER}mlp.dense_h_to_4h": "layers.{i}.ffn.up",
    f"{LAYER}mlp.dense_4h_to_h": "layers.{i}.ffn.down",
}


def rules(config: Config) -> dict[str, str]:
    """Rows of the tensor of q, k and v are those of the first head, of the second, and so on."""
    layout = f"(head part d) ... -> (part head d) ..., head={common.heads(config)[0]} part=3"
    return {
        "transformer.word_embeddings.weight": "embedding.weight",
        "lm_head.weight": "head.weight",
        **common.weights_and_biases(NAMED),
        **{
            f"{LAYER}self_attention.query_key_value.{kind}": f"layers.{{i}}.attention.qkv.{kind}: {layout}"
            for kind in ("weight", "bias")
        },
    }


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(AS_EVERYWHERE)
    num_heads, _, head_dim = common.heads(config)
    scores = Scores(slopes=alibi.slopes(num_heads))
    attention = GQA(num_heads, num_heads, head_dim, None, qkv_bias=True, out_bias=True, scores=scores)
    mlp = MLP(4 * config.size("hidden_size"), "gelu_tanh", bias=True)
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_epsilon"))
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return replace(made, embedding=Embedding(norm=norm))
