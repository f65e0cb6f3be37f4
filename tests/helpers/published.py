"""Sizes of published models of whose files no copy is at hand, written down by keys of their config.json: what a key
left out means is the family's default. With each the parameters that its authors or its files state: exact, or in
billions to as many digits as they give."""

from __future__ import annotations

from typing import Any

from minillm.families.shared.shapes import SHAPES

Size = tuple[str, dict[str, Any], "int | str"]


def sizes(vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv: int | None = None, **more: Any) -> Any:
    made = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads}  # fmt: skip
    return {**made, **({} if kv is None else {"num_key_value_heads": kv}), "max_position_embeddings": 4096, **more}


OWN, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
WIDE = {"head_dim": 128}
QWEN_MOE = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}
FINE = {"n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "first_k_dense_replace": 1}
ERNIE = {"moe_num_experts": 64, "moe_k": 6, "moe_intermediate_size": 1536, "moe_layer_start_index": 1}
ALL_TURN = {"sliding_window": None, "layer_types": None}
LFM2_MOE = ["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)]

ZAMBA2 = ["hybrid" if i in (6, 12, 18, 24, 30, 36, 42, 47, 51) else "mamba" for i in range(54)]
NEMOTRON = {**SHAPES["nemotron-h-4b"]}


def granite(hidden: int, heads: int, kv: int, **more: Any) -> Any:
    kinds = ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)]
    return {**sizes(100352, hidden, None, 40, heads, kv), "mamba_n_heads": hidden // 32, "mamba_d_state": 128,
            "layer_types": kinds, **TIED, **more}  # fmt: skip


OPENELM = {
    "model_dim": 1280, "num_transformer_layers": 16, "head_dim": 64, "share_input_output_layers": True,
    "num_query_heads": [12] * 5 + [16] * 7 + [20] * 4, "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4,
    "ffn_multipliers": [0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0],
}  # fmt: skip

KIMI = {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "kda_layers": [i for i in range(1, 27) if i % 4]}

SIZES: dict[str, Size] = {
    "OpenELM-270M": ("openelm", OPENELM, 271_527_168),
    "phi-2": ("phi", sizes(51200, 2560, 10240, 32, 32), 2_779_683_840),
    "OLMo-1B": ("olmo", sizes(50304, 2048, 8192, 16, 16, **TIED), 1_176_764_416),
    "OLMo-2-1124-7B": ("olmo2", sizes(100352, 4096, 11008, 32, 32, **OWN), 7_298_617_344),
    "OLMo-2-1124-13B": ("olmo2", sizes(100352, 5120, 13824, 40, 40, **OWN), 13_716_198_400),
    "OLMoE-1B-7B-0924": (
        "olmoe", sizes(50304, 2048, 1024, 16, 16, 16, num_experts=64, num_experts_per_tok=8), 6_919_161_856
    ),
    "Olmo-Hybrid-7B": ("olmo_hybrid", {}, "7"),
    "pythia-1.4b": ("gpt_neox", sizes(50304, 2048, 8192, 24, 16), 1_414_647_808),
    "gpt-neox-20b": ("gpt_neox", sizes(50432, 6144, 24576, 44, 64), 20_554_567_680),
    "gpt-j-6b": ("gptj", {}, 6_050_882_784),
    "falcon-7b": ("falcon", sizes(65024, 4544, None, 32, 71), 6_921_720_704),
    "Tanuki-8x8B": ("tanuki", sizes(65024, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2), "47"),
    "Qwen1.5-MoE-A2.7B": (
        "qwen2_moe", sizes(151936, 2048, 5632, 24, 16, 16, shared_expert_intermediate_size=5632, **QWEN_MOE),
        14_315_784_192,
    ),
    "deepseek-moe-16b-base": (
        "deepseek", sizes(102400, 2048, 10944, 28, 16, 16, n_routed_experts=64, **FINE), 16_375_728_128
    ),
    "dots.llm1.base": (
        "dots1", sizes(152064, 4096, 10944, 62, 32, 32, n_routed_experts=128, **FINE, **WIDE), 142_774_381_696
    ),
    "Mistral-Small-3.1-24B, the text model": (
        "mistral3", {"text_config": sizes(131072, 5120, 32768, 40, 32, 8, model_type="mistral", **WIDE)},
        23_572_403_200,
    ),
    "Qwen2.5-VL-7B, the text model": ("qwen2_5_vl", sizes(152064, 3584, 18944, 28, 28, 4, **OWN), 7_615_616_512),
    "Pixtral-12B, the text model": (
        "llava", {"text_config": sizes(131072, 5120, 14336, 40, 32, 8, model_type="mistral", **WIDE)}, 12_247_782_400
    ),
    "glm-4-9b-hf": ("glm", sizes(151552, 4096, 13696, 40, 32, 2, **WIDE), 9_399_951_360),
    "GLM-4-9B-0414": ("glm4", sizes(151552, 4096, 13696, 40, 32, 2, **WIDE), 9_400_279_040),
    "Solar-Open-100B": ("solar_open", {}, "102.6"),
    "Hy3": ("hy_v3", {}, "295"),
    "ERNIE-4.5-0.3B": ("ernie4_5", sizes(103424, 1024, 3072, 18, 16, 2, **WIDE), 360_748_032),
    "ERNIE-4.5-21B-A3B": (
        "ernie4_5_moe", sizes(103424, 2560, 12288, 28, 20, 4, moe_num_shared_experts=2, **ERNIE), 21_825_437_888
    ),
    "Seed-OSS-36B": ("seed_oss", sizes(155136, 5120, 27648, 64, 80, 8, **WIDE), 36_151_104_512),
    "starcoder2-3b": ("starcoder2", sizes(49152, 3072, 12288, 30, 24, 2), 3_030_371_328),
    "starcoder2-7b": ("starcoder2", sizes(49152, 4608, 18432, 32, 36, 4), 7_173_923_840),
    "starcoder2-15b": ("starcoder2", sizes(49152, 6144, 24576, 40, 48, 4, **OWN), 15_957_889_024),
    "stablelm-3b-4e1t": ("stablelm", sizes(50304, 2560, 6912, 32, 32, 32), 2_795_443_200),
    "stablelm-2-1_6b": ("stablelm", sizes(100352, 2048, 5632, 24, 32, 32, use_qkv_bias=True), 1_644_515_328),
    "Mellum2-12B-A2.5B": ("mellum", {}, "12"),
    "EXAONE-3.5-2.4B": ("exaone", sizes(102400, 2560, 7168, 30, 32, 8, head_dim=80, **TIED), 2_405_327_360),
    "EXAONE-3.5-7.8B": ("exaone", sizes(102400, 4096, 14336, 32, 32, 8, **OWN), 7_818_448_896),
    "EXAONE-4.0-1.2B": (
        "exaone4", sizes(102400, 2048, 4096, 30, 32, 8, head_dim=64, **ALL_TURN, **TIED), 1_279_391_488
    ),
    "internlm2-1_8b": ("internlm2", sizes(92544, 2048, 8192, 24, 16, 8, bias=False), 1_889_110_016),
    "internlm2-7b": ("internlm2", sizes(92544, 4096, 14336, 32, 32, 8, bias=False), 7_737_708_544),
    "internlm2-20b": ("internlm2", sizes(92544, 6144, 16384, 48, 48, 8, bias=False), 19_861_149_696),
    "internlm3-8b": ("internlm3", sizes(128512, 4096, 10240, 48, 32, 2, **WIDE), 8_804_241_408),
    "LFM2-8B-A1B": (
        "lfm2_moe", sizes(65536, 2048, 7168, 24, 32, 8, layer_types=LFM2_MOE), "8.3"
    ),
    "LFM3-1.7B": ("lfm3", {}, "1.7"),
    "cwm": ("cwm", {}, "32"),
    "helium-1-preview-2b": ("helium", {}, "2"),
    "Youtu-LLM-2B": ("youtu", {}, "1.96"),
    "gpt-neo-1.3B": ("gpt_neo", {}, 1_315_575_808),
    "opt-125m": ("opt", {"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "max_position_embeddings": 2048}, 125_239_296),
    "granite-3.1-2b": ("granite", sizes(49155, 2048, 8192, 40, 32, 8, **TIED), "2.5"),
    "granite-3.1-8b": ("granite", sizes(49155, 4096, 12800, 40, 32, 8, **TIED), "8.1"),
    "c4ai-command-r-v01": ("cohere", sizes(256000, 8192, 22528, 40, 64, 64), "35"),
    "c4ai-command-r-plus": ("cohere", sizes(256000, 12288, 33792, 64, 96, 8, use_qk_norm=True), "104"),
    "c4ai-command-a-03-2025": ("cohere2", sizes(256000, 12288, 36864, 64, 96, 8), "111"),
    "Apertus-8B-2509": ("apertus", sizes(131072, 4096, 21504, 32, 32, 8), "8"),
    "AFM-4.5B": ("arcee", sizes(128004, 2560, 18432, 36, 20, 4), "4.6"),
    "Hunyuan-1.8B": ("hunyuan_v1_dense", sizes(120818, 2048, 6144, 32, 16, 4, **WIDE, **TIED), "1.8"),
    "Ministral-3-3B-2512": ("ministral3", sizes(131072, 3072, 9216, 26, 32, 8, **WIDE, **TIED), "3.4"),
    "Ministral-3-8B-2512": ("ministral3", sizes(131072, 4096, 14336, 34, 32, 8, **WIDE), "8.4"),
    "Ministral-3-14B-2512": ("ministral3", sizes(131072, 5120, 16384, 40, 32, 8, **WIDE), "13.5"),
    "K-EXAONE-236B-A23B": (
        "exaone_moe", sizes(153600, 6144, 18432, 48, 64, 8, **WIDE, moe_intermediate_size=2048, num_experts=128), "236"
    ),
    "Hunyuan-A13B": (
        "hunyuan_v1_moe", sizes(128167, 4096, 3072, 32, 32, 8, **WIDE, **TIED, num_experts=64, moe_topk=8), "80"
    ),
    "Nemotron-H-4B": ("nemotron_h", NEMOTRON, "4.5"),
    "granite-4.0-h-small": (
        "granitemoehybrid",
        granite(4096, 32, 8, num_local_experts=72, intermediate_size=768, shared_intermediate_size=1536), "32"
    ),
    "granite-4.0-h-tiny": (
        "granitemoehybrid",
        granite(1536, 12, 4, num_local_experts=64, intermediate_size=512, shared_intermediate_size=1024), "7"
    ),
    "granite-4.0-h-micro": (
        "granitemoehybrid", granite(2048, 32, 8, num_local_experts=0, shared_intermediate_size=8192), "3"
    ),
    "Bamba-9B": ("bamba", {"attn_layer_indices": [9, 18, 27], "mamba_d_state": 128, "vocab_size": 128256}, "9.78"),
    "Falcon-H1-0.5B": (
        "falcon_h1", sizes(32784, 1024, 2048, 36, 8, 2, head_dim=64, mamba_d_ssm=1536, mamba_n_heads=24,
                           mamba_d_head=64, mamba_d_state=128), 521_411_104
    ),
    "Mamba-Codestral-7B-v0.1": ("mamba2", {}, 7_285_403_648),
    "mamba-130m": ("mamba", {"num_hidden_layers": 24}, 129_135_360),
    "mamba-2.8b": ("mamba", {"hidden_size": 2560, "num_hidden_layers": 64}, 2_768_345_600),
    "falcon-mamba-7b": (
        "falcon_mamba", {"vocab_size": 65024, "hidden_size": 4096, "num_hidden_layers": 64,
                         "tie_word_embeddings": False}, 7_272_665_088
    ),
    "Jamba-v0.1": ("jamba", {}, "52"),
    "recurrentgemma-2b": ("recurrent_gemma", {"num_key_value_heads": 1, "intermediate_size": 15360}, "2.7"),
    "Zamba2-2.7B": ("zamba2", {"layers_block_type": ZAMBA2, "mamba_headdim": 64, "n_mamba_heads": 80,
                               "num_mem_blocks": 2, "adapter_rank": 128}, "2.7"),
    "mpt-7b": ("mpt", sizes(50432, 4096, None, 32, 32), 6_649_286_656),
    "falcon-40b": (
        "falcon", sizes(65024, 8192, None, 60, 128, new_decoder_architecture=True, num_kv_heads=8), 41_303_293_952
    ),
    "Minitron-4B-Base": ("nemotron", sizes(256000, 3072, 9216, 32, 24, 8, **WIDE), "4.19"),
    "MiniCPM3-4B": ("minicpm3", {}, "4"),
    "Trinity-Mini": (
        "afmoe", sizes(200192, 2048, 6144, 32, 32, 4, **WIDE, num_experts=128, num_experts_per_tok=8,
                       moe_intermediate_size=1024, num_shared_experts=1, num_dense_layers=2), "26"
    ),
    "Mistral-Small-4-119B": ("mistral4", {}, "119"),
    "stablelm-2-12b": (
        "stablelm", sizes(100352, 5120, 13824, 40, 32, 8, qk_layernorm=True, use_parallel_residual=True), "12.1"
    ),
    "gpt-neox-japanese-2.7b": ("gpt_neox_japanese", OWN, "2.7"),
    "Jais-2-8B": ("jais2", {}, "8"),
    "FlexOlmo-7x7B-1T": ("flex_olmo", {}, "33"),
    "Ministral-8B-2410": ("ministral", sizes(131072, 4096, 12288, 36, 32, 8, **WIDE), 8_019_808_256),
    "vaultgemma-1b": ("vaultgemma", sizes(256000, 1152, 6912, 26, 4, 1, head_dim=256), "1"),
    "granite-swash-2b": ("granite_swa", {}, "2"),
    "Kimi-Linear-48B-A3B": ("kimi_linear", {"linear_attn_config": KIMI}, "49"),
    "Phi-4-multimodal, the text model": (
        "phi4mm", sizes(200064, 3072, 8192, 32, 24, 8, **TIED), 3_836_021_760
    ),
    "dbrx-instruct": (
        "dbrx", {**sizes(100352, 6144, None, 40, 48), "attn_config": {"kv_n_heads": 8, "clip_qkv": 8},
                 "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}}, "132"
    ),
    "Baichuan-13B": ("baichuan", sizes(64000, 5120, 13696, 40, 40), "13.3"),
    "Baichuan-7B": ("baichuan", sizes(64000, 4096, 11008, 32, 32), 7_000_559_616),
}  # fmt: skip
