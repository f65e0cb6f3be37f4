"""Llama, except: all that Mistral changes, or Ministral 3, or Mistral Small 4, whichever `text_config` names.

Mistral Small 3.1 and 3.2, 24B, Ministral 3, Mistral Small 4, and what is made of them (Mistral AI, 2025 and 2026), with
Pixtral's tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, positive_integer
from minillm.families import ministral3, mistral, mistral4
from minillm.families.shared import wrapped
from minillm.families.towers import picture_towers, towers
from minillm.guard.screen import shown
from minillm.spec import Decoder, Norm
from minillm.spec.media import Media, Patches, Placeholder, Projector

DEFAULTS = {
    **mistral.DEFAULTS,
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000000.0,
    "sliding_window": None,
}
TRANSFORMERS = wrapped.TRANSFORMERS
PLACEHOLDER = Placeholder("[IMG]", "[IMG]", between="[IMG_BREAK]", after="[IMG_END]")
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def rules(config: Config) -> dict[str, str]:
    return wrapped.rules(mistral4.rules(config) if _latent(config) else mistral.RULES, seen=True)


def spec(config: Config) -> Decoder:
    return mistral4.spec(config) if _latent(config) else ministral3.spec(config)


def _latent(config: Config) -> bool:
    return "kv_lora_rank" in config.values


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    found, section = wrapped.inner(values), values.get("text_config") or {}
    kinds = {"mistral": mistral, "ministral3": ministral3, "mistral4": mistral4}
    if (kind := section.get("model_type", "mistral")) not in kinds:
        raise ValueError(f"config.json: text_config.model_type is {shown(kind)}; mistral3 is read around "
                         f"{', '.join(kinds)} only")  # fmt: skip
    if kind == "mistral":
        scaling = found.get("rope_scaling") or found.get("rope_parameters")
        if isinstance(scaling, dict) and scaling.get("llama_4_scaling_beta"):
            raise ValueError("config.json: llama_4_scaling_beta in a text_config of model_type mistral, which has none")
        return found
    silent = not any(found.get(key) for key in ROPE_KEYS)
    own = {key: value for key, value in kinds[kind].DEFAULTS.items() if silent or key not in ROPE_KEYS}
    return {**own, **found}


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    merge = positive_integer("spatial_merge_size", values.get("spatial_merge_size", 2), 16)
    norm, out = decoder.final_norm, decoder.hidden_size
    assert isinstance(norm, Norm)
    act = picture_towers.activation(values)
    section = values.get("vision_config")
    size = section.get("hidden_size", picture_towers.PIXTRAL["hidden_size"]) if isinstance(section, dict) else 1
    bias = picture_towers.flag(values, "multimodal_projector_bias", False)
    projector = Projector(merge**2, (out, out), norm=Norm(norm.eps), mixed=size, activation=act, bias=bias)
    encoder, config = picture_towers.pixtral(values, decoder, projector, merge)
    assert isinstance(encoder.embed, Patches)
    outer, gathered = "multi_modal_projector.", f"projector.mix.weight: o (e s) -> o (s e), s={merge**2}"
    of_projector = {
        f"{outer}norm.weight": "projector.norm.weight",
        f"{outer}patch_merger.merging_layer.weight": gathered,  # channel by channel, and here place by place
        **towers.linear(f"{outer}linear_1", "projector.maps.0"),
        **towers.linear(f"{outer}linear_2", "projector.maps.1"),
    }
    rules = towers.both({**picture_towers.pixtral_rules(encoder.embed), **of_projector})
    return Media("image", encoder, PLACEHOLDER, "edge"), rules, config
