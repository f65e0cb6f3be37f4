"""Llama, except: all that Qwen3 changes; of the pairs of a picture's tokens time, row and column turn one after the
other; what leaves some layers of the tower is added behind the first layers of the decoder (DeepStack).

Qwen3-VL 2B, 4B, 8B, 32B (arXiv:2511.21631).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import Config
from minillm.families import qwen2_vl, qwen3
from minillm.families.shared import common, wrapped
from minillm.families.towers import towers
from minillm.spec import MLP, Decoder, LayerNorm
from minillm.spec.media import Media, Placeholder, Projector, Video

DEFAULTS = {**qwen3.DEFAULTS, "max_position_embeddings": 128000, "rope_theta": 500000.0}
RULES = wrapped.rules(qwen3.RULES, seen=True)
inner, spec = wrapped.inner_of_text, qwen3.spec
SECTIONS = (24, 20, 20)
VISION = {
    **towers.DEFAULTS,
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "out_hidden_size": 3584,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
STAMPED = Placeholder("<|video_pad|>", "<|video_pad|>", before="<|vision_start|>", after="<|vision_end|>")
VIDEO = Video(STAMPED, 768, stamps="seconds", sampling="ends", bounds="clip")
MERGER, TAPS = "visual.merger.", "visual.deepstack_merger_list.{i}."
VISION_RULES = {
    **{
        pattern: to for pattern, to in qwen2_vl.VISION_RULES.items() if ".mlp." not in pattern and MERGER not in pattern
    },
    "visual.pos_embed.weight": "table",
    **{
        pattern: to
        for one, other in (("mlp.linear_fc1", "up"), ("mlp.linear_fc2", "down"))
        for pattern, to in towers.linear(f"visual.blocks.{{i}}.{one}", f"layers.{{i}}.ffn.{other}").items()
    },
    **{
        pattern: to
        for outer, inner_name in ((MERGER, "projector."), (TAPS, "taps.{i}."))
        for one, other in (("norm", "norm"), ("linear_fc1", "maps.0"), ("linear_fc2", "maps.1"))
        for pattern, to in towers.linear(f"{outer}{one}", f"{inner_name}{other}").items()
    },
}


def media(
    values: Mapping[str, Any],
    decoder: Decoder,
    sections: Sequence[int] = SECTIONS,
    defaults: Mapping[str, Any] = VISION,
) -> tuple[Media, dict[str, str], Config]:
    config = towers.section(values, "vision_config", defaults)
    size, out = config.size("hidden_size"), config.size("out_hidden_size")
    ffn = MLP(config.size("intermediate_size"), config.choice("hidden_act", towers.ACTIVATIONS), bias=True)
    taps = towers.listed(config, "deepstack_visual_indexes", config.size("depth", common.MAX_LAYERS))
    if len(taps) > len(decoder.layers):
        raise ValueError(f"config.json: deepstack_visual_indexes are {len(taps)}, the text model has fewer layers")
    count = towers.patches(config).merge ** 2
    tapped = Projector(count, (count * size, out), norm=LayerNorm(1e-6), norm_of="gathered") if taps else None
    more = {"patch_bias": True, "table": towers.stretched(config), "taps": taps, "tap_projector": tapped}
    encoder = towers.merged(config, decoder, size, out, LayerNorm(1e-6), ffn, **more)
    rules = towers.both({**VISION_RULES, "visual.patch_embed.proj.weight": towers.cut(towers.patches(config))})
    return towers.media(encoder, towers.axes(values, decoder, sections, "interleaved"), VIDEO), rules, config
