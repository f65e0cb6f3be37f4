"""Llama, except: all that Gemma 2 changes but the caps; each head of q and k is normalised; five layers with a window,
then one without, and the two kinds have rotary embeddings of their own, of which only the latter's is scaled.

Gemma 3 270M, 1B, 4B, 12B, 27B (arXiv:2503.19786). The latter three see pictures, all in one size and 256 tokens long,
whose tokens see each other both ways. A long one may be seen in parts as well (pan and scan).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, positive_integer
from minillm.families import gemma, gemma2
from minillm.families.shared import common, rotary, wrapped
from minillm.families.towers import picture_towers, towers
from minillm.spec import Decoder, QKNorm
from minillm.spec.media import Media, Patches, Placeholder

DEFAULTS = {
    **gemma2.DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "_sliding_window_pattern": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
TEXT_RULES = {**gemma2.RULES, **common.QK_NORM_RULES}
RULES = wrapped.rules(TEXT_RULES, seen=True)
TRANSFORMERS = wrapped.TRANSFORMERS
inner = wrapped.inner
PLACEHOLDER = Placeholder(
    "<start_of_image>",
    "<image_soft_token>",
    before="\n\n<start_of_image>",
    after="<end_of_image>\n\n",
    crops=("Here is the original image ", " and here are some crops to help you see better ", " "),
)
TOKENS = 256  # of a picture


def spec(config: Config) -> Decoder:
    if (cap := config.get("attn_logit_softcapping")) is not None:
        raise ValueError(f"config.json: attn_logit_softcapping is {cap!r}; this family normalises q and k instead")
    patterns = [config.get(key) for key in ("_sliding_window_pattern", "sliding_window_pattern")]
    key = "sliding_window_pattern" if patterns[0] is None else "_sliding_window_pattern"
    every = config.size(key)
    sliding = [(i + 1) % every != 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    ropes = rotary.by_window(config, common.heads(config)[2], windows, config.get("rope_local_base_freq"))
    return gemma2.decoder(config, windows, ropes, QKNorm(gemma.norm(config)))


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    tokens = positive_integer("mm_tokens_per_image", values.get("mm_tokens_per_image", TOKENS), 2**16)
    encoder, config = picture_towers.siglip(values, decoder, tokens)
    assert isinstance(encoder.embed, Patches)
    projector = {
        "multi_modal_projector.mm_input_projection_weight": "projector.maps.0.weight: e h -> h e",
        "multi_modal_projector.mm_soft_emb_norm.weight": "projector.norm.weight",
    }
    # transformers 5 writes names without "vision_model"
    names = [
        picture_towers.siglip_rules(encoder.embed, each) for each in ("vision_tower.vision_model.", "vision_tower.")
    ]
    made = Media("image", encoder, PLACEHOLDER, "fixed", joint=True)
    return made, towers.both({**names[0], **names[1], **projector}), config
