"""Llama, except: all that GPT-2 changes, but all heads share one key and value, and matrices are stored as they are
everywhere else.

SantaCoder, StarCoder, StarCoderPlus, tiny_starcoder_py (Li et al., arXiv:2305.06161).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common, learned
from minillm.spec import Decoder

# Where scores are fp32, and how memory is taken.
AS_EVERYWHERE = """attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner validate_runner_input
    pre_allocate_kv_cache max_sequence_length max_batch_size pad_key_length""".split()
FIXED = {"scale_attn_weights": True, "add_cross_attention": False}
DEFAULTS = {
    **learned.DEFAULTS,
    **FIXED,
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "hidden_act": "gelu_pytorch_tanh",
    "multi_query": True,
    "num_key_value_heads": None,
    **dict.fromkeys(AS_EVERYWHERE),
}
LAYER = "transformer.h.{i}."
NAMED = {"mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down", "attn.c_proj": "attention.out"}


def rules(config: Config) -> dict[str, str]:
    """With several keys a head, rows of the tensor of q, k and v are those of the first head, of the second, and so
    on."""
    heads = common.heads(config)[0]
    layout = "" if config.flag("multi_query") else f": (head part d) ... -> (part head d) ..., head={heads} part=3"
    return {
        **learned.RULES,
        **common.weights_and_biases({f"{LAYER}{name}": f"layers.{{i}}.{to}" for name, to in NAMED.items()}),
        **{f"{LAYER}attn.c_attn.{kind}": f"layers.{{i}}.attention.qkv.{kind}{layout}" for kind in ("weight", "bias")},
    }


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(AS_EVERYWHERE)
    kv_heads = 1 if config.flag("multi_query") else config.size("num_attention_heads")
    config.derived("num_key_value_heads", {kv_heads})
    return learned.decoder(config, learned.alike(config, kv_heads))
