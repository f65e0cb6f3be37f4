"""Llama, except: embedding, activation, norms behind attention and MLP, windows and two rotary embeddings as in
Gemma 3, but norms have plain weights; layers without a window have heads of another width, of which a part turns;
scores are not scaled; v is normalised, and may be k; the last layers may read the keys and values of others, with a
wider MLP; layers have embeddings of their own, or experts beside the MLP; and a learned number on what they return.

Gemma 4 E2B, E4B, 26B-A4B, 31B (2026). Their tower has layers of the decoder's kind; pictures keep their proportions,
three by three of their patches become one token, and a model may let its tokens see each other both ways in layers with
a window. Of a video 32 frames are seen, each behind its time. What sound goes through is left out.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import gemma2
from minillm.families.shared import beside, common, on_device, rotary, wrapped
from minillm.families.towers import pooled_tower
from minillm.spec import GQA, KV, Decoder, Embedding, GatedMLP, Norm, QKNorm, Scores

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
inner, media = wrapped.inner, pooled_tower.media


def rules(config: Config) -> dict[str, str]:
    made = on_device.rules(config, {**TEXT_RULES, **(beside.RULES if config.flag("enable_moe_block") else {})})
    return {**made, **pooled_tower.LEFT}


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
        per_layer=on_device.per_layer(config, norm),
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
