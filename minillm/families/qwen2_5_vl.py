"""Llama, except: all that Qwen2-VL changes, and its tower has RMSNorm, gated MLPs with biases, and layers of which most
see windows of the picture only.

Qwen2.5-VL 3B, 7B, 32B, 72B (arXiv:2502.13923). In `vision_config` `hidden_size` is the tower's, `out_hidden_size` the
text model's, `window_size` a side in pixels, `tokens_per_second` how a video's coordinate in time grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import qwen2_vl
from minillm.families.towers import towers
from minillm.spec import Decoder, GatedMLP, Norm
from minillm.spec.media import Media, Video

DEFAULTS, RULES = qwen2_vl.DEFAULTS, qwen2_vl.RULES
inner, spec = qwen2_vl.inner, qwen2_vl.spec
VISION = {
    **towers.DEFAULTS,
    "hidden_size": 3584,
    "out_hidden_size": 3584,
    "intermediate_size": 3420,
    "hidden_act": "silu",
    "tokens_per_second": 4,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
VISION_RULES = {
    **{pattern: to for pattern, to in qwen2_vl.VISION_RULES.items() if ".mlp.fc" not in pattern},
    **towers.linear("visual.blocks.{i}.mlp.down_proj", "layers.{i}.ffn.down"),
    **{
        f"visual.blocks.{{i}}.mlp.{part}_proj.{leaf}": f"layers.{{i}}.ffn.gate_up.{leaf}[{part}]"
        for part in ("gate", "up")
        for leaf in ("weight", "bias")
    },
}


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    config = towers.section(values, "vision_config", VISION)
    size, embed = config.size("hidden_size"), towers.patches(config)
    ffn = GatedMLP(config.size("intermediate_size"), config.choice("hidden_act", towers.common.ACTIVATIONS), bias=True)
    window = config.size("window_size") // embed.side // embed.merge
    if not window:
        raise ValueError(f"config.json: window_size is less than {embed.side * embed.merge} pixels, a block's side")
    whole = towers.listed(config, "fullatt_block_indexes", config.size("depth", towers.common.MAX_LAYERS))
    out = config.size("out_hidden_size")
    encoder = towers.merged(config, decoder, size, out, Norm(1e-6), ffn, window=window, whole=whole)
    rules = towers.both({**VISION_RULES, "visual.patch_embed.proj.weight": towers.cut(embed)})
    video = Video(towers.VIDEO_PAD, towers.VIDEO_TOKENS, per_second=config.number("tokens_per_second"))
    return towers.media(encoder, towers.axes(values, decoder, qwen2_vl.SECTIONS, "chunked"), video), rules, config
