"""Llama, except: norms with weights around zero, of each head of q and k too; half of each head is rotated;
feed-forwards have gpt-oss's clamped SwiGLU; after the first layers come DeepSeek-V3's mixtures without groups.

MiniMax-M3 (MiniMax, 2026), without the image encoder. From the fourth layer on an indexer chooses 16 blocks of 128 keys
for the query heads of each kv head (docs/sparse-attention.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import Config, same
from minillm.families import mixtral
from minillm.families.recurrent import hybrid
from minillm.families.shared import blocks, common, rotary, wrapped
from minillm.spec import GQA, KV, ClampedSwiGLU, Decoder, GatedMLP, MoE, QKNorm

FIXED = {"attention_output_gate": False, "use_gemma_norm": True, "use_qk_norm": True, "use_routing_bias": True,
         "qk_norm_type": "per_head", "scoring_func": "sigmoid", "n_shared_experts": 1}  # fmt: skip
# Of layers left out, and stated once more.
UNUSED = ("num_mtp_modules", "num_nextn_predict_layers", "router_jitter_noise", "num_reward_heads",
          "process_image_mode", "first_k_dense_replace", "moe_intermediate_size", "img_token_compression_config",
          "image_grid_pinpoints")  # fmt: skip
DEFAULTS = {
    **{key: value for key, value in mixtral.DEFAULTS.items() if key != "sliding_window"},
    **FIXED,
    **dict.fromkeys(UNUSED),
    "vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 3072, "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072, "num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4,
    "head_dim": 128, "max_position_embeddings": 524288, "rms_norm_eps": 1e-6, "rope_theta": 5000000.0,
    "rotary_dim": 64, "partial_rotary_factor": None, "num_local_experts": 128, "num_experts_per_tok": 4,
    "routed_scaling_factor": 2.0, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "mlp_layer_types": None,
    **blocks.DEFAULTS,
}  # fmt: skip
LAYER, MIXTURE = "model.layers.{i}.", "model.layers.{i}.block_sparse_moe."
RULES = wrapped.rules(
    {
        **common.DENSE_RULES,
        **mixtral.RULES,
        **common.QK_NORM_RULES,
        **common.shared_expert(f"{MIXTURE}shared_experts."),
        f"{MIXTURE}e_score_correction_bias": "layers.{i}.ffn.router.bias",
        **blocks.RULES,
    },
    (*wrapped.TOWERS, "patch_merge_mlp"),
)  # fmt: skip


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """Published keys in transformers' words."""
    made = blocks.stated(wrapped.inner(values))
    if (listed := made.pop("moe_layer_freq", None)) is not None:
        made["mlp_layer_types"] = common.words("moe_layer_freq", listed, ("dense", "sparse"))
    return made


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(UNUSED)
    config.choice("hidden_act", {"silu": None, "swigluoai": None})  # whichever is stated, the clamped one is computed
    num_heads, num_kv_heads, head_dim = common.heads(config)
    turned = config.size("rotary_dim")
    part = {f"rotary_dim {turned} of {head_dim}": turned / head_dim}
    same({"partial_rotary_factor": config.get("partial_rotary_factor"), **part})
    rope = rotary.rope(config, head_dim, partial=turned / head_dim)
    norm, act = hybrid.norm(config), ClampedSwiGLU(config.number("swiglu_alpha"), config.number("swiglu_limit"))
    scale, layers = config.number("routed_scaling_factor"), common.num_layers(config)
    router = common.router(config, "num_local_experts", score="sigmoid", renormalize=True, scale=scale, bias=True)
    dense, shared = (GatedMLP(config.size(f"{kind}_intermediate_size"), act) for kind in ("dense", "shared"))
    ffn = common.typed_layers(
        config, MoE(router, config.size("intermediate_size"), act, shared), dense, [True] * layers
    )
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qk_norm=QKNorm(norm))
    indexers = blocks.indexers(config, turned, num_kv_heads, norm)
    return common.decoder(config, [replace(attention, kv=KV(indexer=each)) for each in indexers], ffn, norm)
