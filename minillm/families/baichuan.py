"""Llama, except: q, k and v lie in one tensor, and every head has its own key and value; the 13B models have ALiBi
(scores fall with the distance) in place of rotation; Baichuan 2 normalises the rows of the head to length 1.

Baichuan 7B and 13B, Baichuan 2 7B and 13B (Baichuan, 2023; arXiv:2309.10305). Baichuan 2 is recognised by its
vocabulary of 125696; the published code divides its head by the length of each row. The 13B models are recognised by
`model_max_length` without `max_position_embeddings`. Their tokenizer is Python code around a SentencePiece model.
transformers has no class for them: the tests compare with Llama's under these names.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import alibi, common, rotary
from minillm.spec import GQA, Decoder, Scores

NORMED_HEAD = 125696
DEFAULTS = {**llama.DEFAULTS, "vocab_size": 64000, "max_position_embeddings": 4096, "model_max_length": None}
PLAIN = {**common.DENSE_RULES, "model.layers.{i}.self_attn.W_pack.weight": "layers.{i}.attention.qkv.weight"}


def rules(config: Config) -> dict[str, str]:
    normed = config.get("vocab_size") == NORMED_HEAD
    return {**PLAIN, "lm_head.weight": "head.weight: rows of length 1"} if normed else PLAIN


def spec(config: Config) -> Decoder:
    num_heads, _, head_dim = common.heads(config)
    if config.get("model_max_length") and "max_position_embeddings" not in config.values:
        attention = GQA(num_heads, num_heads, head_dim, None, scores=Scores(slopes=alibi.slopes(num_heads)))
        context = config.positions("model_max_length")
    else:
        attention = GQA(num_heads, num_heads, head_dim, rope := rotary.rope(config, head_dim))
        context = rotary.context(config, rope)
    made = common.dense(config, [attention] * common.num_layers(config))
    return replace(made, context=context)
