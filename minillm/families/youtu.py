"""Llama, except: latent attention as in DeepSeek-V3, in every layer and without mixtures.

Youtu-LLM-2B (Tencent, 2025), whose head is the embedding. `head_dim` in its config is the part of a head that turns.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, latent
from minillm.spec import Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "qk_head_dim": None,
    "v_head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_interleave": True,
    "tie_word_embeddings": True,
}
rules = latent.rules


def spec(config: Config) -> Decoder:
    layers, mlp = common.num_layers(config), common.gated_mlp(config, "intermediate_size", config.flag("mlp_bias"))
    attention = latent.attention(config, latent.layout(config))
    return common.decoder(config, [attention] * layers, [mlp] * layers)
