"""Why known families are refused: what they need that is not computed here. By the config's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_RUNS = "a gate of low rank mixes its streams, its indexer takes means of keys, and it looks up runs of tokens"
_UNKNOWN = "there was nothing at hand to compare its layers with"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "kimi_k3": "it has an activation of its own, and its layers attend to blocks of the sums before them",
        "bailing_moe_v3_vl": "its part that reads pictures is not known here",
        "deepseek_v41": _UNKNOWN,
        **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _RUNS),
        "plamo2": "there was nothing at hand to compare its state spaces with, which are neither Mamba's nor Mamba 2's",
        **dict.fromkeys("k2_horizon nanbeige apertus1p5 bailing_moe mimo_v2 nemotron_h_puzzle".split(), _UNKNOWN),
        "mistral_large4_text": "its layers share keys, which an indexer picks",
        "bitnet": "its weights have three values, packed, and its activations eight bits",
        "rwkv7": "its layers are a recurrence of its own, and so is its tokenizer",
        "minimax": "its linear attention fades at fixed rates, and its layers add to what their norms give",
        "longcat_flash": "its layers have two attentions and two MLPs, and some of its experts do nothing",
        "mllama": "some of its layers attend to a picture, or do nothing without one",
        "minicpmv4_6": "its part that reads pictures is not known here",
        "gpt_neox_reward_model": "it scores a text, and has no head for the next token",
    }
)
