"""Llama, except: all that Phi-3 changes; matrices may have adapters, which are used for pictures and sounds only.

The text model of Phi-4-multimodal-instruct (Microsoft, arXiv:2503.01743), which is Phi-4-mini: for text the published
code switches both adapters (LoRA) off, and transformers has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import phi3
from minillm.spec import Decoder

DEFAULTS = {
    **phi3.DEFAULTS,
    "vocab_size": 200064,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
# Of what sees and hears, and of its adapters.
OUTER = (
    "audio_config",
    "vision_config",
    "audio_processor",
    "img_processor",
    "embd_layer",
    "speech_lora",
    "vision_lora",
)
ADAPTED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
ADAPTER = "DROP: adapters for pictures and sounds, which a text goes without"
LAYER = "model.layers.{i}."
RULES = {
    **phi3.RULES,
    "model.embed_tokens_extend.*": "DROP: the parts that see and hear, which are not supported",
    **{f"{LAYER}{part}.base_layer.weight": phi3.RULES[f"{LAYER}{part}.weight"] for part in ADAPTED},
    **{
        f"{LAYER}{part}.lora_{side}.{kind}.weight": ADAPTER
        for part in ADAPTED
        for side in "AB"
        for kind in ("speech", "vision")
    },
}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in OUTER}


def spec(config: Config) -> Decoder:
    return phi3.spec(config)
