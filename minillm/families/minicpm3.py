"""Llama, except: all that MiniCPM changes, and DeepSeek-V2's latent attention, which rotates halves in place of
neighbours.

MiniCPM3-4B (OpenBMB, 2024).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama, minicpm
from minillm.families.shared import common, latent
from minillm.spec import Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 73448,
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "num_hidden_layers": 62,
    "num_attention_heads": 40,
    "num_key_value_heads": None,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "q_lora_rank": 768,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "qk_head_dim": None,
    "v_head_dim": None,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
}
rules = latent.rules


def spec(config: Config) -> Decoder:
    layers = common.num_layers(config)
    mlp = common.gated_mlp(config, "intermediate_size", config.flag("mlp_bias"))
    return minicpm.scaled(config, common.decoder(config, [latent.attention(config, "half")] * layers, [mlp] * layers))
