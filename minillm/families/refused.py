"""Why known families are refused: what they need that is not computed here. By the config's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_KDA = "its linear layers forget each channel at a rate of its own (Kimi Delta Attention)"
_STREAMS = "its layers read and write several streams (hyper-connections)"
_DISTANCE = "its scores get a learned number for each distance, and its layers convolve what they add"
_MAMBA_1 = "its state spaces are those of Mamba 1, with a rate for each channel and state"
_CLAMPED = "its gates are clamped behind the activation, in some layers only"
_ADAPTED = "its text layers have an adapter for each kind of input"
_UNKNOWN = "there was nothing at hand to compare its layers with"
_UNWRITTEN = "it consists of known parts, and nobody has put them together here"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("kimi_linear", "kimi_k3", "bailing_hybrid", "bailing_moe_v3_vl"), _KDA),
        "deepseek_v41": _UNKNOWN,
        **dict.fromkeys(("glm5_next", "glm5_next_text"), f"{_STREAMS}, and {_KDA}"),
        **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), f"{_STREAMS}, and it looks up runs of tokens"),
        "hy_v4": f"{_STREAMS}, and its latent attention has sinks and a gate",
        **dict.fromkeys(("inkling_mm_model", "inkling_text"), _DISTANCE),
        **dict.fromkeys(("mamba", "falcon_mamba", "jamba", "plamo2"), _MAMBA_1),
        **dict.fromkeys(("step3p5", "step3p7"), _CLAMPED),
        **dict.fromkeys(("phi4mm", "phi4_multimodal"), _ADAPTED),
        **dict.fromkeys("k2_horizon nanbeige apertus1p5 bailing_moe mimo_v2 nemotron_h_puzzle".split(), _UNKNOWN),
        **dict.fromkeys("jais2 flex_olmo ministral granitemoeshared granite_swa vaultgemma".split(), _UNWRITTEN),
        "gpt_neox_japanese": _UNWRITTEN,
        "zamba2": "its layers share attention blocks, each with a low-rank change of its own (LoRA)",
        "nemotron-nas": "some of its layers have a linear map in place of attention or MLP, or nothing",
        "mistral_large4_text": "its layers share keys, which an indexer picks",
        "lfm3": "its convolutions work on keys and values too",
        "bitnet": "its weights have three values, packed, and its activations eight bits",
        "recurrent_gemma": "its layers are linear recurrences with a gate (RG-LRU)",
        "rwkv7": "its layers are a recurrence of its own, and so is its tokenizer",
        "longcat_flash": "its layers have two attentions and two MLPs, and some of its experts do nothing",
        "cohere2_moe": "its experts may be averaged with shared ones, and its first layers have own windows",
        "dbrx": "its experts lie side by side in one tensor, in a layout of its own",
        "mllama": "some of its layers attend to a picture, or do nothing without one",
        "minicpmv4_6": "its part that reads pictures is not known here",
        "gpt_neox_reward_model": "it scores a text, and has no head for the next token",
    }
)
