"""A tower of a decoder's own kind of layers, squares of whose outputs are averaged (Gemma 4, 2026): norms in front of
and behind attention and MLP, normalised q, k and v whose scores are not scaled, learned rows for columns and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, number
from minillm.families.shared import common, wrapped
from minillm.families.towers import towers
from minillm.guard.screen import shown
from minillm.spec import GQA, KV, Decoder, GatedMLP, Layer, Norm, QKNorm, Rope, Scores
from minillm.spec.media import BOUNDS, Encoder, Media, Patches, Placeholder, Projector, Table, Video

VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "rope_parameters": None,
    "pooling_kernel_size": 3,
    "patch_size": 16,
    "position_embedding_size": 10240,
    "use_clipped_linears": False,
    "standardize": False,
}
IDLE = ("attention_dropout", "default_output_length", "global_head_dim", "max_position_embeddings")
PLACEHOLDER, FRAME = (
    Placeholder(token, token, before="<|image>", after="<image|>") for token in ("<|image|>", "<|video|>")
)
VIDEO = Video(FRAME, 70, stamps="clock", sampling="number")
SEES, HEARS = ("vision_tower", "embed_vision", "vision_embedder"), ("audio_tower", "embed_audio")
UNHEARD = {f"{part}.*": wrapped.SOUNDS for part in HEARS}
LEFT = towers.both({**{f"{part}.*": wrapped.SEEN for part in SEES}, **UNHEARD})  # to this, by a decoder's rules
LAYER, TO = "vision_tower.encoder.layers.{i}.", "layers.{i}."


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config] | None:
    if values.get("vision_config") is None:
        return None
    encoder, config = pooled(values, decoder)
    return seen_by(values, decoder, encoder), towers.both({**rules(encoder), **UNHEARD}), config


def seen_by(values: Mapping[str, Any], decoder: Decoder, encoder: Encoder, both_ways: str | None = None) -> Media:
    """What a decoder of this family is given of pictures and videos. `both_ways`: where their tokens see each other if
    the config does not say."""
    section = values.get("text_config")
    text = section if isinstance(section, Mapping) else values
    joint = text.get("use_bidirectional_attention", both_ways) == "vision"
    told_as = (text.get("pad_token_id") or 0) if decoder.per_layer else None
    if told_as is not None and (type(told_as) is not int or not 0 <= told_as < decoder.vocab_size):
        raise ValueError(f"config.json: pad_token_id is {shown(told_as)}, expected a token of {decoder.vocab_size:,}")
    how: dict[str, Any] = {"joint": joint, "windowed": joint, "told_as": told_as, "video": VIDEO}
    return Media("image", encoder, PLACEHOLDER, "budget", **how)


def pooled(values: Mapping[str, Any], decoder: Decoder) -> tuple[Encoder, Config]:
    config = towers.section(values, "vision_config", VISION)
    config.without_effect(IDLE)
    size, side, merge = (config.size(key, 2**16) for key in ("hidden_size", "patch_size", "pooling_kernel_size"))
    norm, clipped = Norm(config.number("rms_norm_eps"), cast="after_weight"), config.flag("use_clipped_linears")
    layer = Layer(
        norm, _seeing(config, norm), norm,
        GatedMLP(config.size("intermediate_size"), config.choice("hidden_activation", common.ACTIVATIONS)), norm, norm,
    )  # fmt: skip
    standardized = config.flag("standardize")
    bare = Norm(norm.eps, affine=False)
    projector = Projector(
        merge**2, (decoder.hidden_size,), "mean", bare, "gathered", bias=False, scale=size**0.5,
        standardized=standardized,
    )  # fmt: skip
    encoder = Encoder(
        size, Patches(side, merge), (layer,) * config.size("num_hidden_layers", common.MAX_LAYERS), projector,
        columns="first", table=Table(config.size("position_embedding_size", 2**20), summed=True), clipped=clipped,
    )  # fmt: skip
    return encoder, config


def _seeing(config: Config, norm: Norm) -> GQA:
    """The attention of the tower."""
    if config.get("attention_bias"):
        raise ValueError("config.json: vision_config.attention_bias is true; this family's tower has no biases")
    heads, kv_heads, dim = (
        config.size(key, 4096) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if heads % kv_heads or dim % 4:
        raise ValueError(
            f"config.json: a tower of {heads} heads of {dim} values and {kv_heads} of keys; the former must be a "
            "multiple of the latter, and their values one of 4"
        )
    stated = config.get("rope_parameters") or {}
    if not isinstance(stated, Mapping) or stated.get("rope_type", "axial") not in ("axial", "default"):
        raise ValueError(f"config.json: vision_config.rope_parameters is {shown(stated)}; supported is axial")
    theta = number("rope_theta", stated.get("rope_theta", 100.0), low=1.0001)
    kv = KV(Norm(norm.eps, affine=False))
    return GQA(heads, kv_heads, dim, Rope(dim, theta), qk_norm=QKNorm(norm), scores=Scores(1.0), kv=kv)


def rules(encoder: Encoder) -> dict[str, str]:
    """Of each head they have the pairs of columns, each the halves of a quarter, then those of rows; here pairs are the
    halves of a head."""
    embed, seeing = encoder.embed, encoder.layers[0].attention
    assert isinstance(embed, Patches)
    assert isinstance(seeing, GQA)
    quarter = seeing.head_dim // 4
    of_head = f"(ways half d) -> (half ways d), ways=2 half=2 d={quarter}"
    of_heads = f"(n ways half d) e -> (n half ways d) e, ways=2 half=2 d={quarter}"
    attention, parts = f"{TO}attention.", {"gate": "gate_up", "up": "gate_up", "down": "down"}
    places = {f"self_attn.{each}_proj": ("attention.qkv", each) for each in "qkv"}
    places |= {"self_attn.o_proj": ("attention.out", "")}
    places |= {f"mlp.{each}_proj": (f"ffn.{to}", each if to == "gate_up" else "") for each, to in parts.items()}
    found = {
        "vision_tower.patch_embedder.input_proj.weight":
            f"embed.weight: o (h w c) -> o (c h w), h={embed.side} w={embed.side} c=3",
        "vision_tower.patch_embedder.position_embedding_table": "table: two p e -> (two p) e, two=2",
        "vision_tower.std_bias": "projector.shift",
        "vision_tower.std_scale": "projector.factor",
        "embed_vision.embedding_projection.weight": "projector.maps.0.weight",
        **{f"{LAYER}self_attn.{each}_norm.weight": f"{attention}{each}_norm.weight: {of_head}" for each in "qk"},
        f"{LAYER}input_layernorm.weight": f"{TO}attention_norm.weight",
        f"{LAYER}post_attention_layernorm.weight": f"{TO}post_attention_norm.weight",
        f"{LAYER}pre_feedforward_layernorm.weight": f"{TO}ffn_norm.weight",
        f"{LAYER}post_feedforward_layernorm.weight": f"{TO}post_ffn_norm.weight",
    }  # fmt: skip
    for name, (to, part) in places.items():
        layout = f": {of_heads}" if part in ("q", "k") else ""
        found[f"{LAYER}{name}.linear.weight"] = f"{TO}{to}.weight" + (f"[{part}]" if part else "") + layout
        for bound in BOUNDS if encoder.clipped else ():
            found[f"{LAYER}{name}.{bound}"] = f"{TO}{to}.bounds[{f'{part} {bound}'.strip()}]:  -> 1"
    return found
