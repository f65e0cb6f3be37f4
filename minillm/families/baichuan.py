"""Llama, except: q, k and v lie in one tensor, and every head has a key and value of its own.

Baichuan-7B (Baichuan, 2023). The others are refused: Baichuan 2, known by its vocabulary of 125696, divides each row of
its head by its length, and the 13B models, which state `model_max_length` alone, have no rotary positions. Its
tokenizer is Python code around a SentencePiece model. transformers has no class for it: the tests compare with Llama's
under these names.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

OTHER_HEAD = 125696
DEFAULTS = {**llama.DEFAULTS, "vocab_size": 64000, "max_position_embeddings": 4096, "model_max_length": None}
RULES = {**common.DENSE_RULES, "model.layers.{i}.self_attn.W_pack.weight": "layers.{i}.attention.qkv.weight"}


def spec(config: Config) -> Decoder:
    if config.size("vocab_size") == OTHER_HEAD:
        raise ValueError(f"config.json: vocab_size is {OTHER_HEAD}, that of Baichuan 2, whose head is not supported")
    if config.get("model_max_length") and "max_position_embeddings" not in config.values:
        raise ValueError("config.json: no max_position_embeddings, as in the 13B models, whose positions have ALiBi")
    num_heads, _, head_dim = common.heads(config)
    attention = GQA(num_heads, num_heads, head_dim, rotary.rope(config, head_dim))
    return common.dense(config, [attention] * common.num_layers(config))
