"""Llama, except: all that DeepSeek-V3 changes, in other sizes; `mlp_layer_types` may say which layers have a mixture.

GLM-4.7-Flash, 30B with 3B active (Z.ai, 2026). `head_dim` in its config is the part of a head that turns. The layer
after the last, which predicts further tokens, is left out.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v3, glm4_moe
from minillm.families.shared import common, experts, latent
from minillm.spec import Decoder

DEFAULTS = {
    **deepseek_v3.DEFAULTS,
    **glm4_moe.MIXTURES,
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.8,
    "q_lora_rank": 768,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "mlp_layer_types": None,
}
rules, prediction_layers = deepseek_v3.rules, deepseek_v3.prediction_layers


def spec(config: Config) -> Decoder:
    layers, dense = range(common.num_layers(config)), common.gated_mlp(config, "intermediate_size")
    moe, first = experts.mixture(config, deepseek_v3.router(config), dense), experts.first_dense(config)
    attention = latent.attention(config, latent.layout(config))
    ffn = common.typed_layers(config, moe, dense, [i >= first for i in layers])
    return common.decoder(config, [attention] * len(layers), ffn)
