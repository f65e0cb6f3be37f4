"""Llama, except: all that Mistral changes where `text_config` names it.

Pixtral 12B in the form that transformers reads (arXiv:2410.07073): Pixtral's tower and two products with biases. Of
others of this form, such as LLaVA 1.5 (arXiv:2310.03744), the text alone is read: CLIP's tower is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import llama, mistral, mistral3
from minillm.families.shared import wrapped
from minillm.families.towers import picture_towers, towers
from minillm.guard.screen import shown
from minillm.spec import Decoder
from minillm.spec.media import Media, Patches, Projector

TEXTS = {"mistral": mistral.DEFAULTS, "llama": {**llama.DEFAULTS, "sliding_window": None}}  # by its model_type
DEFAULTS = {**llama.DEFAULTS, **mistral.DEFAULTS}
RULES = wrapped.rules(mistral.RULES, seen=True)
TRANSFORMERS = wrapped.TRANSFORMERS
spec = mistral.spec


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    section, found = values.get("text_config"), wrapped.inner(values)
    kind = section.get("model_type", "llama") if isinstance(section, dict) else "llama"
    if kind not in TEXTS:
        raise ValueError(
            f"config.json: text_config.model_type is {shown(kind)}; llava is read around {', '.join(TEXTS)}"
        )
    own = {key: value for key, value in TEXTS[kind].items() if key not in mistral3.ROPE_KEYS}
    return {**own, **found}


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    section = values.get("vision_config")
    kind = section.get("model_type") if isinstance(section, dict) else section
    if kind != "pixtral":
        raise ValueError(f"config.json: vision_config.model_type is {shown(kind)}; of towers pixtral's is read")
    act = picture_towers.activation(values)
    bias = picture_towers.flag(values, "multimodal_projector_bias", True)
    projector = Projector(1, (decoder.hidden_size,) * 2, activation=act, bias=bias)
    encoder, config = picture_towers.pixtral(values, decoder, projector, merge=1)
    assert isinstance(encoder.embed, Patches)
    products = {
        pattern: to
        for at in (1, 2)
        for pattern, to in towers.linear(f"multi_modal_projector.linear_{at}", f"projector.maps.{at - 1}").items()
    }
    rules = towers.both({**picture_towers.pixtral_rules(encoder.embed), **products})
    return Media("image", encoder, mistral3.PLACEHOLDER, "edge"), rules, config
