"""Llama, except: embedding, activation, norms behind attention and MLP, windows and two rotary embeddings as in
Gemma 3, but norms have plain weights; layers without a window have heads of another width, of which a part turns;
scores are not scaled; v is normalised, and may be k; the last layers may read the keys and values of others, with a
wider MLP; layers have embeddings of their own, or a mixture of experts beside the MLP; and a learned number on all that
they return.

Gemma 4 E2B, E4B, 26B-A4B, 31B (2026). Their tower has layers of the decoder's kind; pictures keep their proportions,
three by three of their patches become one token, and a model may let its tokens see each other both ways in layers with
a window. What sound goes through is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.config import Config, number
from minillm.families import gemma2
from minillm.families.shared import beside, common, on_device, rotary, towers, wrapped
from minillm.guard.screen import shown
from minillm.spec import GQA, KV, Decoder, Embedding, GatedMLP, Layer, Norm, QKNorm, Rope, Scores
from minillm.spec.media import BOUNDS, Encoder, Media, Patches, Placeholder, Projector, Table

DEFAULTS = {
    **gemma2.DEFAULTS,
    **on_device.DEFAULTS,
    **beside.DEFAULTS,
    "vocab_size": 262144,
    "num_hidden_layers": 30,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "sliding_window": 512,
    "final_logit_softcapping": None,
    "global_head_dim": 512,
    "num_global_key_value_heads": None,
    "per_layer_config": None,
    "attention_k_eq_v": False,
    "use_double_wide_mlp": False,
}
SPAN = 6  # the last layer of each so many has no window, where the config does not say
TEXT_RULES = {
    **gemma2.RULES,
    **common.QK_NORM_RULES,
    **on_device.RULES,
    "model.layers.{i}.layer_scalar": "layers.{i}.scale",
}
TRANSFORMERS: dict[str, str] = {}
PLACEHOLDER = Placeholder("<|image|>", "<|image|>", before="<|image>", after="<image|>")
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
VISION_IDLE = ("attention_dropout", "default_output_length", "global_head_dim", "max_position_embeddings")
SEES, TOWER_LAYER, TO = ("vision_tower", "embed_vision"), "vision_tower.encoder.layers.{i}.", "layers.{i}."
inner = wrapped.inner


def rules(config: Config) -> dict[str, str]:
    made = on_device.rules(config, {**TEXT_RULES, **(beside.RULES if config.flag("enable_moe_block") else {})})
    return {**made, **{f"{outer}{tower}.*": wrapped.SEEN for tower in SEES for outer in ("", "model.")}}


def spec(config: Config) -> Decoder:
    if config.get("use_bidirectional_attention") != "vision":  # which is for images
        common.causal_only(config)
    count, eps = common.num_layers(config), config.number("rms_norm_eps")
    windows = common.typed_windows(config, common.window(config), [(i + 1) % SPAN != 0 for i in range(count)])
    windows[-1] = None  # whatever the config says
    sources, norm = on_device.sources(config, windows), Norm(eps, cast="after_weight")
    wide, narrow = _attention(config, norm, windows)
    mlp = GatedMLP(config.size("intermediate_size"), config.choice("hidden_activation", common.ACTIVATIONS))
    double = replace(mlp, intermediate_size=2 * mlp.intermediate_size) if config.flag("use_double_wide_mlp") else mlp
    ffn = [beside.mixture(config, mlp if source is None else double, norm) for source in sources]
    mixers = [wide if window is None else narrow for window in windows]
    mixers = [a if of is None else replace(a, kv=KV(layer=of)) for a, of in zip(mixers, sources, strict=True)]
    made = common.decoder(config, mixers, ffn, norm)
    behind = {"post_attention_norm": norm, "post_ffn_norm": norm, "scaled": True}
    before = {"ffn_norm": None} if config.flag("enable_moe_block") else {}
    return replace(
        common.every_layer(made, **behind, **before),
        embedding=Embedding(made.hidden_size**0.5),
        logit_softcap=config.optional_number("final_logit_softcapping"),
        per_layer=on_device.per_layer(config, norm, mlp.activation),
    )


def _attention(config: Config, norm: Norm, windows: list[int | None]) -> tuple[GQA, GQA]:
    """Of layers without a window, and of those with one."""
    num_heads, num_kv_heads, head_dim = common.heads(config)
    same, wide = config.flag("attention_k_eq_v"), on_device.wide_heads(config, windows)
    ropes = dict(zip(windows, rotary.by_window(config, head_dim, windows, 10000.0, wide[1]), strict=True))
    bias, kv = config.flag("attention_bias"), KV(Norm(norm.eps, affine=False))
    heads = (num_heads, *wide, ropes[None], None, bias, bias, QKNorm(norm))
    full = GQA(*heads, scores=Scores(1.0), kv=replace(kv, v_is_k=same))
    window = common.window(config)
    local = replace(full, num_kv_heads=num_kv_heads, head_dim=head_dim, rope=ropes.get(window), window=window, kv=kv)
    return full, local


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config] | None:
    if values.get("vision_config") is None:
        return None
    config = towers.section(values, "vision_config", VISION)
    config.without_effect(VISION_IDLE)
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
    section = values.get("text_config")
    text = section if isinstance(section, Mapping) else values
    joint = text.get("use_bidirectional_attention") == "vision"
    told_as = (text.get("pad_token_id") or 0) if decoder.per_layer else None
    if told_as is not None and (type(told_as) is not int or not 0 <= told_as < decoder.vocab_size):
        raise ValueError(f"config.json: pad_token_id is {shown(told_as)}, expected a token of {decoder.vocab_size:,}")
    made = Media("image", encoder, PLACEHOLDER, "budget", joint=joint, windowed=joint, told_as=told_as)
    return made, towers.both(_vision_rules(encoder, layer.attention.head_dim)), config


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
    kind = stated.get("rope_type", "axial") if isinstance(stated, Mapping) else stated
    if kind not in ("axial", "default"):
        raise ValueError(f"config.json: vision_config.rope_parameters has rope_type {shown(kind)}; supported is axial")
    theta = number("rope_theta", stated.get("rope_theta", 100.0), low=1.0001)
    kv = KV(Norm(norm.eps, affine=False))
    return GQA(heads, kv_heads, dim, Rope(dim, theta), qk_norm=QKNorm(norm), scores=Scores(1.0), kv=kv)


def _vision_rules(encoder: Encoder, head_dim: int) -> dict[str, str]:
    """Of each head they have the pairs of columns, each the halves of a quarter, then those of rows; here pairs are the
    halves of a head."""
    embed = encoder.embed
    assert isinstance(embed, Patches)
    of_head = f"(ways half d) -> (half ways d), ways=2 half=2 d={head_dim // 4}"
    of_heads = f"(n ways half d) e -> (n half ways d) e, ways=2 half=2 d={head_dim // 4}"
    attention, parts = f"{TO}attention.", {"gate": "gate_up", "up": "gate_up", "down": "down"}
    places = {f"self_attn.{each}_proj": ("attention.qkv", each) for each in "qkv"}
    places |= {"self_attn.o_proj": ("attention.out", "")}
    places |= {f"mlp.{each}_proj": (f"ffn.{to}", each if to == "gate_up" else "") for each, to in parts.items()}
    rules = {
        "audio_tower.*": "DROP",  # which the text model's rules tell of
        "vision_tower.patch_embedder.input_proj.weight":
            f"embed.weight: o (h w c) -> o (c h w), h={embed.side} w={embed.side} c=3",
        "vision_tower.patch_embedder.position_embedding_table": "table: two p e -> (two p) e, two=2",
        "vision_tower.std_bias": "projector.shift",
        "vision_tower.std_scale": "projector.factor",
        "embed_vision.embedding_projection.weight": "projector.maps.0.weight",
        **{f"{TOWER_LAYER}self_attn.{each}_norm.weight": f"{attention}{each}_norm.weight: {of_head}" for each in "qk"},
        f"{TOWER_LAYER}input_layernorm.weight": f"{TO}attention_norm.weight",
        f"{TOWER_LAYER}post_attention_layernorm.weight": f"{TO}post_attention_norm.weight",
        f"{TOWER_LAYER}pre_feedforward_layernorm.weight": f"{TO}ffn_norm.weight",
        f"{TOWER_LAYER}post_feedforward_layernorm.weight": f"{TO}post_ffn_norm.weight",
    }  # fmt: skip
    for name, (to, part) in places.items():
        layout = f": {of_heads}" if part in ("q", "k") else ""
        rules[f"{TOWER_LAYER}{name}.linear.weight"] = f"{TO}{to}.weight" + (f"[{part}]" if part else "") + layout
        for bound in BOUNDS if encoder.clipped else ():
            rules[f"{TOWER_LAYER}{name}.{bound}"] = f"{TO}{to}.bounds[{f'{part} {bound}'.strip()}]:  -> 1"
    return rules
