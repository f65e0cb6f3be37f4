"""A configuration of every architecture that GGUF files here have, some with what sets variants of it apart.

Those that llama.cpp runs have what its graphs have fixed: their sizes are small all the same.
"""

from __future__ import annotations

from typing import Any

from tests.helpers import tiny
from tests.helpers.gemma_rows import FULL as WHOLE
from tests.helpers.gemma_rows import GEMMA4, SLIDING, SMALL, STREAMS
from tests.helpers.rows import EXPERTS, GROUPS, LATENT, LATENT_YARN, YARN

FULL = {"rope_theta": 500.0}
MROPE = tiny.ROWS["qwen3_vl"][1]["rope_parameters"]
SQUARE = {"linear_key_head_dim": 12, "linear_value_head_dim": 12}
PHI3_LONG = tiny.ROWS["phi3-long"][1]
SHARED = {"shared_expert_intermediate_size": 36}
V3 = {**LATENT, **GROUPS, "n_shared_experts": 1, "norm_topk_prob": True}
SAME_BASE = {kind: {"rope_type": "default", "rope_theta": 700.0} for kind in ("full_attention", "sliding_attention")}
MELLUM = {**tiny.ROWS["mellum"][1], "rope_parameters": SAME_BASE}
# As many layers, streams and values as llama.cpp has fixed.
FIXED = {
    **STREAMS,
    "num_hidden_layers": 22,
    "layer_types": ([SLIDING] * 4 + [WHOLE]) * 4 + [SLIDING, WHOLE],
    "laurel_rank": 64,
    "hidden_size_per_layer_input": 256,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
    "final_logit_softcapping": 30.0,
}
UNIFIED = {"attention_k_eq_v": True, "num_global_key_value_heads": 3, "num_kv_shared_layers": 2}
V2 = {**LATENT, **GROUPS, "topk_method": "group_limited_greedy", "norm_topk_prob": False}
UNBIASED = {"mamba_proj_bias": False, "mamba_conv_bias": True}
GRANITE_DENSE = {**tiny.ROWS["granitemoehybrid-dense"][1], **UNBIASED}
NEMOTRON_MOE = {
    **tiny.ROWS["nemotron_h-latent"][1],
    "layers_block_type": ["moe", "linear_attention", "full_attention", "moe"],
    "use_bias": False,
    "use_conv_bias": True,
}
# Architecture, family, and what sets the configuration apart.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {"rms_norm_eps": 1e-5}),
    "llama biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama linear": ("llama", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **FULL}}),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 5}),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", "qwen2", {"rope_parameters": {**YARN, **FULL}}),
    "qwen2 (mimo)": ("qwen2", "mimo", tiny.ROWS["mimo"][1]),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, **SHARED}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "gemma": ("gemma", "gemma", {"head_dim": 12}),
    "gemma2": ("gemma2", "gemma2", {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 5}),
    "gemma3": ("gemma3", "gemma3_text", {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 5,
                                         "num_hidden_layers": 7}),
    "phi3": ("phi3", "phi3", {}),
    "phi3 long": ("phi3", "phi3", PHI3_LONG),
    "phi2": ("phi2", "phi", {"num_key_value_heads": 6}),
    "gptneox": ("gptneox", "gpt_neox", {"num_key_value_heads": None, "rotary_pct": 0.5}),
    "gptneox serial": ("gptneox", "gpt_neox", {"num_key_value_heads": None, "rotary_pct": 0.5,
                                               "use_parallel_residual": False}),
    "gpt-oss": ("gpt-oss", "gpt_oss", {"num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 12,
                                       "sliding_window": 6}),
    "qwen2vl": ("qwen2vl", "qwen2_vl", tiny.ROWS["qwen2_vl"][1]),
    "qwen3vl": ("qwen3vl", "qwen3_vl", {**tiny.ROWS["qwen3_vl"][1], "tie_word_embeddings": True}),
    "qwen3vlmoe": ("qwen3vlmoe", "qwen3_vl_moe", {**EXPERTS, "head_dim": 16, "rope_parameters": MROPE}),
    "qwen3next": ("qwen3next", "qwen3_next", {**tiny.ROWS["qwen3_next"][1], **SQUARE}),
    "qwen35": ("qwen35", "qwen3_5_text", {**tiny.ROWS["qwen3_5_text"][1], **SQUARE}),
    "qwen35 (as many heads)": ("qwen35", "qwen3_5_text", {**tiny.ROWS["qwen3_5_text"][1], **SQUARE,
                                                          "linear_num_value_heads": 2}),
    "qwen35moe": ("qwen35moe", "qwen3_5_moe_text", {**tiny.ROWS["qwen3_5_moe_text"][1], **SQUARE}),
    "seed_oss": ("seed_oss", "seed_oss", {"head_dim": 12}),
    "seed_oss biases": ("seed_oss", "seed_oss", tiny.ROWS["seed_oss-biases"][1]),
    "minimax-m2": ("minimax-m2", "minimax_m2", tiny.ROWS["minimax_m2"][1]),
    "olmo": ("olmo", "olmo", {"clip_qkv": 1.5}),
    "olmo2": ("olmo2", "olmo2", {}),
    "olmoe": ("olmoe", "olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "deepseek": ("deepseek", "deepseek", tiny.ROWS["deepseek"][1]),
    "deepseek2 (v2)": ("deepseek2", "deepseek_v2", {**V2, "rope_parameters": {**LATENT_YARN, "mscale": 1.1}}),
    "deepseek2 (v3)": ("deepseek2", "deepseek_v3", {**V3, "rope_parameters": {**LATENT_YARN, "mscale": 1.1}}),
    "gemma3n": ("gemma3n", "gemma3n_text", FIXED),
    "gemma4": ("gemma4", "gemma4_text", {**SMALL, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}),
    "gemma4 (experts)": ("gemma4", "gemma4_text", tiny.ROWS["gemma4-experts"][1]),
    "gemma4 (unified)": ("gemma4", "gemma4_unified_text", {**GEMMA4, **UNIFIED, "final_logit_softcapping": 5.0}),
    "exaone": ("exaone", "exaone", {}),
    "exaone4": ("exaone4", "exaone4", tiny.ROWS["exaone4"][1]),
    "exaone4 (windows)": ("exaone4", "exaone4", tiny.ROWS["exaone4-window"][1]),
    "gpt2": ("gpt2", "gpt2", tiny.ROWS["gpt2"][1]),
    "starcoder": ("starcoder", "gpt_bigcode", tiny.ROWS["gpt_bigcode"][1]),
    "bloom": ("bloom", "bloom", tiny.ROWS["bloom"][1]),
    "smollm3": ("smollm3", "smollm3", tiny.ROWS["smollm3"][1]),
    "granite": ("granite", "granite", tiny.ROWS["granite"][1]),
    "granitemoe": ("granitemoe", "granitemoe", tiny.ROWS["granitemoe"][1]),
    "qwen": ("qwen", "qwen", tiny.ROWS["qwen"][1]),
    "baichuan": ("baichuan", "baichuan", {**tiny.ROWS["baichuan"][1], "num_hidden_layers": 32}),
    "internlm2": ("internlm2", "internlm2", {}),
    "mistral3": ("mistral3", "mistral3", {"head_dim": 12, "sliding_window": None}),
    "chatglm": ("chatglm", "chatglm", {"head_dim": 8}),
    "chatglm (glm)": ("chatglm", "glm", {"head_dim": 8, "attention_bias": False}),
    "glm4": ("glm4", "glm4", {"head_dim": 12, "attention_bias": True}),
    "ernie4_5": ("ernie4_5", "ernie4_5", {"head_dim": 12}),
    "starcoder2": ("starcoder2", "starcoder2", {"tie_word_embeddings": False}),
    "stablelm": ("stablelm", "stablelm", {"num_key_value_heads": 3}),
    "stablelm (parallel)": ("stablelm", "stablelm", tiny.ROWS["stablelm-parallel"][1]),
    "falcon": ("falcon", "falcon", tiny.ROWS["falcon"][1]),
    "mistral3 (ministral)": ("mistral3", "ministral3", tiny.ROWS["ministral3"][1]),
    "arcee": ("arcee", "arcee", {"head_dim": 12}),
    "hunyuan-dense": ("hunyuan-dense", "hunyuan_v1_dense", tiny.ROWS["hunyuan_v1_dense"][1]),
    "command-r": ("command-r", "cohere", tiny.ROWS["cohere"][1]),
    "cohere2": ("cohere2", "cohere2", {**tiny.ROWS["cohere2"][1], "num_hidden_layers": 5}),
    "nemotron": ("nemotron", "nemotron", tiny.ROWS["nemotron"][1]),
    "nemotron biases": ("nemotron", "nemotron", {**tiny.ROWS["nemotron-biases"][1], "head_dim": 8}),
    "mpt": ("mpt", "mpt", {**tiny.ROWS["mpt"][1], "num_attention_heads": 6}),
    "minicpm": ("minicpm", "minicpm", tiny.ROWS["minicpm"][1]),
    "hunyuan-moe": ("hunyuan-moe", "hunyuan_v1_moe", tiny.ROWS["hunyuan_v1_moe"][1]),
    "dbrx": ("dbrx", "dbrx", tiny.ROWS["dbrx"][1]),
    "glm4moe": ("glm4moe", "glm4_moe", tiny.ROWS["glm4_moe"][1]),
    "glm4moe (groups)": ("glm4moe", "glm4_moe", tiny.ROWS["glm4_moe-groups"][1]),
    "glm4moe (solar)": ("glm4moe", "solar_open", tiny.ROWS["solar_open"][1]),
    "dots1": ("dots1", "dots1", {**tiny.ROWS["dots1"][1], "num_key_value_heads": 6}),
    "hy_v3": ("hy_v3", "hy_v3", tiny.ROWS["hy_v3"][1]),
    "ernie4_5-moe": ("ernie4_5-moe", "ernie4_5_moe", tiny.ROWS["ernie4_5_moe"][1]),
    "mellum": ("mellum", "mellum", MELLUM),
    "deepseek2 (flash)": ("deepseek2", "glm4_moe_lite", tiny.ROWS["glm4_moe_lite"][1]),
    "deepseek2 (youtu)": ("deepseek2", "youtu", tiny.ROWS["youtu"][1]),
    "deepseek2 (kimi)": ("deepseek2", "kimi_k25", tiny.ROWS["kimi_k25"][1]),
    "lfm2": ("lfm2", "lfm2", {**tiny.ROWS["lfm2"][1], "block_auto_adjust_ff_dim": False, "intermediate_size": 80}),
    "lfm2moe": ("lfm2moe", "lfm2_moe", tiny.ROWS["lfm2_moe"][1]),
    "nemotron_h": ("nemotron_h", "nemotron_h", tiny.ROWS["nemotron_h"][1]),
    "nemotron_h_moe": ("nemotron_h_moe", "nemotron_h", NEMOTRON_MOE),
    "granitehybrid": ("granitehybrid", "granitemoehybrid", tiny.ROWS["granitemoehybrid"][1]),
    "granitehybrid (dense)": ("granitehybrid", "granitemoehybrid", GRANITE_DENSE),
    "mamba2": ("mamba2", "mamba2", tiny.ROWS["mamba2"][1]),
    "mamba": ("mamba", "mamba", {**tiny.ROWS["mamba"][1], "use_bias": False}),
    "mamba (falcon)": ("mamba", "falcon_mamba", {**tiny.ROWS["falcon_mamba"][1], "use_conv_bias": True,
                                                 "layer_norm_epsilon": 1e-2, "intermediate_size": 96}),
    "jamba": ("jamba", "jamba", tiny.ROWS["jamba"][1]),
    "jamba (dense)": ("jamba", "jamba", {**tiny.ROWS["jamba-dense"][1], "mamba_expand": 2, "mamba_proj_bias": False,
                                         "mamba_conv_bias": True}),
    "deepseek2 (lite)": ("deepseek2", "deepseek_v2", {**LATENT, "q_lora_rank": None, "norm_topk_prob": False}),
}  # fmt: skip
