"""What families read the same way from a config of what sees pictures, or hears sounds, and the names of its tensors.

The tower of the Qwen-VL line: patches of two frames, LayerNorm or RMSNorm before attention and MLP, rotary positions of
two axes in all layers, a merger of neighbours. `MERGED` are its names but those of MLPs and of the merger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from minillm.config import Config, number
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import GQA, MLP, Decoder, GatedMLP, Layer, LayerNorm, Norm, Rope
from minillm.spec.media import Encoder, Media, Patches, Placeholder, Projector, Table, Video

IMAGE_PAD, VIDEO_PAD = (Placeholder(token, token) for token in ("<|image_pad|>", "<|video_pad|>"))
VIDEO_TOKENS = 128_000  # a context that videos of the Qwen-VL line leave room in
ACTIVATIONS = {**common.ACTIVATIONS, "quick_gelu": "quick_gelu"}
THETA = 10000.0
MAX_SIDE = 1024  # patches
# Keys of a tower that nothing depends on: they say what others say, or what is the same for all.
IDLE = ("in_chans", "in_channels", "num_channels", "spatial_patch_size", "initializer_range", "model_type", "dtype")
DEFAULTS = {
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "rope_parameters": None,
}
MERGED = {
    "visual.blocks.{i}.norm1.weight": "layers.{i}.attention_norm.weight",
    "visual.blocks.{i}.norm1.bias": "layers.{i}.attention_norm.bias",
    "visual.blocks.{i}.norm2.weight": "layers.{i}.ffn_norm.weight",
    "visual.blocks.{i}.norm2.bias": "layers.{i}.ffn_norm.bias",
    "visual.blocks.{i}.attn.qkv.weight": "layers.{i}.attention.qkv.weight",
    "visual.blocks.{i}.attn.qkv.bias": "layers.{i}.attention.qkv.bias",
    "visual.blocks.{i}.attn.proj.weight": "layers.{i}.attention.out.weight",
    "visual.blocks.{i}.attn.proj.bias": "layers.{i}.attention.out.bias",
    "visual.patch_embed.proj.bias": "embed.bias",
}


def section(values: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Config:
    """A section of a config.json over a family's defaults."""
    found = values.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"config.json: {name} is {shown(found)}, expected an object")
    made = Config(found, defaults)
    made.without_effect(IDLE)
    return made


def both(rules: Mapping[str, str]) -> dict[str, str]:
    """The rules for the names of both generations, the later of which begin with "model."."""
    return {**rules, **{f"model.{pattern}": target for pattern, target in rules.items()}}


def linear(pattern: str, target: str) -> dict[str, str]:
    """A matrix with its bias."""
    return {f"{pattern}.{leaf}": f"{target}.{leaf}" for leaf in ("weight", "bias")}


def cut(embed: Patches, axes: str = "c t h w") -> str:
    """The layout of a convolution over patches, as the product that it is."""
    sizes = {"c": 3, "t": embed.frames, "h": embed.side, "w": embed.side}
    given = " ".join(f"{axis}={sizes[axis]}" for axis in axes.split())
    return f"embed.weight: o {axes} -> o ({axes}), {given}"


def patches(config: Config, bias: bool = False) -> Patches:
    side, merge = (config.size(key, 512) for key in ("patch_size", "spatial_merge_size"))
    return Patches(side, merge, config.size("temporal_patch_size", 16), bias)


def layers(
    config: Config, size: int, norm: Norm | LayerNorm, ffn: MLP | GatedMLP, heads: int, count: int
) -> tuple[Layer, ...]:
    """Layers with biases whose heads turn by rows and columns."""
    dim, stated = head_dim(size, heads), config.get("rope_parameters")
    theta = number("rope_theta", (stated or {}).get("rope_theta", THETA) if isinstance(stated or {}, dict) else None)
    attention = GQA(heads, heads, dim, Rope(dim, theta), qkv_bias=True, out_bias=True)
    return (Layer(norm, attention, norm, ffn),) * count


def head_dim(size: int, heads: int) -> int:
    """Of a head whose pairs are turned by two coordinates, half of them by each."""
    if size % heads or size // heads % 4:
        raise ValueError(f"config.json: a tower of {size} values and {heads} heads; heads need a multiple of 4 values")
    return size // heads


def merged(
    config: Config, decoder: Decoder, size: int, out: int, norm: Norm | LayerNorm, ffn: MLP | GatedMLP, **more: Any
) -> Encoder:
    """The tower of the Qwen-VL line; `more` are further fields of the encoder."""
    if out != decoder.hidden_size:
        raise ValueError(f"config.json: the tower gives {out} values, the text model has {decoder.hidden_size}")
    embed = patches(config, more.pop("patch_bias", False))
    count = embed.merge**2
    made = layers(config, size, norm, ffn, config.size("num_heads", 1024), config.size("depth", common.MAX_LAYERS))
    projector = Projector(count, (count * size, out), norm=norm)
    return Encoder(size, embed, made, projector, columns="same", **more)


def stretched(config: Config) -> Table:
    """A square table that is stretched to a picture's grid."""
    count = config.size("num_position_embeddings", MAX_SIDE**2)
    if (side := round(count**0.5)) ** 2 != count:
        raise ValueError(f"config.json: num_position_embeddings is {count}, which is no square")
    return Table(side, stretched=True)


def listed(config: Config, key: str, count: int) -> tuple[int, ...]:
    """Layers of a tower that a config lists."""
    found = config.get(key)
    if not isinstance(found, list) or any(type(each) is not int or not 0 <= each < count for each in found):
        raise ValueError(f"config.json: {key} is {shown(found)}, expected layers from 0 to {count - 1}")
    if len({*found}) != len(found):
        raise ValueError(f"config.json: {key} is {shown(found)}, which has a layer twice")
    return tuple(found)


def axes(
    values: Mapping[str, Any], decoder: Decoder, usual: Sequence[int], order: Literal["chunked", "interleaved"]
) -> tuple[int, ...]:
    """Of each rotary pair the coordinate that turns it, by `mrope_section`: so many pairs by time, row and column, one
    kind behind the other, or taking turns, in which those of time fill up what rows and columns leave."""
    outer = values.get("text_config")
    text = outer if isinstance(outer, dict) else values
    stated: Any = None
    for key in ("rope_scaling", "rope_parameters"):
        for place in (values, text):
            found = place.get(key)
            stated = found.get("mrope_section") if stated is None and isinstance(found, dict) else stated
    sections = list(usual) if stated is None else stated
    rope = next(each.rope for each in decoder.attentions)
    pairs = 0 if rope is None else rope.dim // 2
    fits = (
        isinstance(sections, list) and len(sections) == 3 and all(type(each) is int and each >= 0 for each in sections)
    )
    if not fits or sum(sections) != pairs:
        raise ValueError(f"config.json: mrope_section is {shown(sections)}, expected three numbers of sum {pairs}")
    if order == "chunked":
        return tuple(axis for axis, count in enumerate(sections) for _ in range(count))
    made = [0] * pairs
    for axis in (1, 2):
        for pair in range(axis, min(3 * sections[axis], pairs), 3):
            made[pair] = axis
    return tuple(made)


def media(encoder: Encoder, axes: tuple[int, ...], video: Video) -> Media:
    """A tower of the Qwen-VL line in front of its decoder."""
    return Media("image", encoder, IMAGE_PAD, axes=axes, video=video)
