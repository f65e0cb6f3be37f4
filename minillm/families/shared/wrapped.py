"""The text model inside one that also reads images: its values in a section of the config, its tensors behind a prefix,
and towers that are left out.

A token of an image has three positions, in time, height and width; each turns some of a head's pairs (`mrope_section`).
All three of a token of text are the same (Wang et al., arXiv:2409.12191), which is plain rotary positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import HARMLESS, same

IMAGES = "DROP: the part that reads images, which is not supported"
SOUNDS = "DROP: the part that hears, which is not supported"
SEEN = "DROP: the part that sees or hears, which is read with the first picture or sound"
TOWERS = ("vision_tower", "multi_modal_projector", "mm_projector", "visual")
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}
# Values of the towers, and of what stands in a text for an image.
OUTER = """vision_config boi_token_index eoi_token_index image_token_index mm_tokens_per_image image_token_id
    audio_token_index image_seq_length vision_feature_select_strategy
    video_token_id vision_start_token_id vision_end_token_id vision_token_id media_placeholder_token_id ignore_index
    use_unified_vision_chunk video_placeholder projector_hidden_act projection_hidden_size projection_layer_norm_eps
    multimodal_projector_bias spatial_merge_size vision_feature_layer audio_config audio_token_id boa_token_id
    boi_token_id eoa_token_id eoa_token_index eoi_token_id vision_soft_tokens_per_image
    audio_soft_tokens_per_image video_token_index out_hidden_size projector_hidden_size""".split()
SECTIONS_OF_IMAGES = ("mrope_section", "mrope_interleaved")


def rules(text: Mapping[str, str], towers: Sequence[str] = TOWERS, seen: bool = False) -> dict[str, str]:
    """A text model's rules for each place that its tensors may lie in, and the towers beside them, whose images are
    `seen` or not."""
    return {
        **text,
        **{f"language_model.{pattern}": target for pattern, target in text.items()},
        **{pattern.replace("model.", "model.language_model.", 1): target for pattern, target in text.items()},
        **{f"{outer}{tower}.*": SEEN if seen else IMAGES for tower in towers for outer in ("", "model.")},
    }


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's own values, whether a config has them in a section or not. The outer word on a tied head counts:
    transformers 5 goes by that one, and writes its class's default into the section."""
    section = values.get("text_config")
    if not isinstance(section, (dict, type(None))):
        raise ValueError(f"config.json: text_config is {str(section)[:40]!r}, expected an object")
    outer = {key: value for key, value in values.items() if key not in ("text_config", *OUTER)}
    section = {key: value for key, value in (section or {}).items() if key not in OUTER}
    if outer.get("tie_word_embeddings") is not None:
        section.pop("tie_word_embeddings", None)
    for key in sorted(set(outer) & set(section) - set(HARMLESS) - {"torch_dtype", "auto_map"}):
        same({key: outer[key], f"text_config.{key}": section[key]})
    return {**outer, **section, "model_type": values["model_type"]}


def inner_of_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with positions as they are where there is text alone."""
    found = inner(values)
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(stated := found.get(key), dict):
            plain = {name: value for name, value in stated.items() if name not in SECTIONS_OF_IMAGES}
            found[key] = {name: "default" if value == "mrope" else value for name, value in plain.items()}
    return found
