"""Llama, except: all that Mistral changes, or what else `text_config` names.

Pixtral 12B in the form that transformers reads (arXiv:2410.07073): Pixtral's tower and two products with biases. Other
models of this form have CLIP's tower, which is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import mistral, mistral3
from minillm.families.shared import common, picture_towers, towers, wrapped
from minillm.guard.screen import shown
from minillm.spec import Decoder
from minillm.spec.media import Media, Patches, Projector

DEFAULTS = {**mistral.DEFAULTS, "sliding_window": None, "rms_norm_eps": 1e-5, "rope_theta": 1000000000.0}
RULES = wrapped.rules(mistral.RULES, seen=True)
TRANSFORMERS = wrapped.TRANSFORMERS
spec = mistral.spec


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    for name, only in (("text_config", "mistral"), ("vision_config", "pixtral")):
        section = values.get(name)
        if isinstance(section, dict) and (kind := section.get("model_type")) not in (None, only):
            raise ValueError(f"config.json: {name}.model_type is {shown(kind)}; llava is read around {only} only")
    return wrapped.inner(values)


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    act, bias = values.get("projector_hidden_act", "gelu"), values.get("multimodal_projector_bias", True) is True
    projector = Projector(1, (decoder.hidden_size,) * 2, activation=common.ACTIVATIONS[act], bias=bias)
    encoder, config = picture_towers.pixtral(values, decoder, projector, merge=1)
    assert isinstance(encoder.embed, Patches)
    products = {
        pattern: to
        for at in (1, 2)
        for pattern, to in towers.linear(f"multi_modal_projector.linear_{at}", f"projector.maps.{at - 1}").items()
    }
    rules = towers.both({**picture_towers.pixtral_rules(encoder.embed), **products})
    return Media("image", encoder, mistral3.PLACEHOLDER, "edge"), rules, config
