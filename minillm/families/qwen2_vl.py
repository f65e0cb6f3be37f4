"""Llama, except: all that Qwen2 changes; tokens of pictures are turned by time, row and column.

Qwen2-VL 2B, 7B, 72B (Wang et al., arXiv:2409.12191). Published configs have the text model's values at the top, beside
`vision_config`; transformers 5 writes them into `text_config`. In that section `hidden_size` is the text model's, and
`embed_dim` the tower's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import qwen2
from minillm.families.shared import wrapped
from minillm.families.towers import towers
from minillm.spec import MLP, Decoder, LayerNorm
from minillm.spec.media import Media, Video

DEFAULTS = {
    **qwen2.DEFAULTS,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_window_layers": 80,
}
RULES = wrapped.rules(qwen2.RULES, seen=True)
inner, spec = wrapped.inner_of_text, qwen2.spec
SECTIONS = (16, 24, 24)
VISION = {**towers.DEFAULTS, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "hidden_act": "quick_gelu"}
VISION_RULES = {
    **towers.MERGED,
    **towers.linear("visual.blocks.{i}.mlp.fc1", "layers.{i}.ffn.up"),
    **towers.linear("visual.blocks.{i}.mlp.fc2", "layers.{i}.ffn.down"),
    **towers.linear("visual.merger.ln_q", "projector.norm"),
    **towers.linear("visual.merger.mlp.0", "projector.maps.0"),
    **towers.linear("visual.merger.mlp.2", "projector.maps.1"),
}


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    config = towers.section(values, "vision_config", VISION)
    size = config.size("embed_dim")
    ffn = MLP(int(size * config.number("mlp_ratio")), config.choice("hidden_act", towers.ACTIVATIONS), bias=True)
    encoder = towers.merged(config, decoder, size, config.size("hidden_size"), LayerNorm(1e-6), ffn)
    rules = towers.both({**VISION_RULES, "visual.patch_embed.proj.weight": towers.cut(towers.patches(config))})
    video = Video(towers.VIDEO_PAD, towers.VIDEO_TOKENS)
    return towers.media(encoder, towers.axes(values, decoder, SECTIONS, "chunked"), video), rules, config
