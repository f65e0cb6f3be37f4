"""Llama, except: the embedding is normalised, without a weight; norms before and after attention and MLP have weights
around zero; each head of q and k is normalised, without a weight, and q has a factor; three of four layers have a
window and are rotated, the others have no positions; the output of the heads is multiplied by a sigmoid gate; logits
have a factor and a cap.

Muse-Glimmer-30B (Meta, 2026), without the image encoder.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config, number
from minillm.families import gemma2, llama
from minillm.families.shared import common, rotary, wrapped
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Embedding, Gate, GatedMLP, Norm, QKNorm, Scores

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("mlp_bias", "hidden_act")},
    "hidden_activation": "silu",
    "vocab_size": 202048,
    "hidden_size": 6656,
    "intermediate_size": 19968,
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "post_norm_eps": 1e-8,
    "sliding_window": 2048,
    "layer_types": None,
    "layer_rope_theta": None,
    "qk_scale_factor": 3.87,
    "output_multiplier": 0.19611613513818404,
    "final_logit_softcapping": 20.0,
}
TEXT_RULES = {**gemma2.RULES, "model.layers.{i}.self_attn.gate_proj.weight": "layers.{i}.attention.gate.weight"}
RULES = wrapped.rules(TEXT_RULES, ("vision_tower", "vision_model", "vision_adapter", "vision_projection"))
inner = wrapped.inner


def spec(config: Config) -> Decoder:
    layers, eps = common.num_layers(config), config.number("rms_norm_eps")
    spaced = [(layers - 1 - i) % 4 != 0 for i in range(layers)]
    windows = common.typed_windows(config, common.window(config), spaced)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, rope = config.flag("attention_bias"), rotary.rope(config, head_dim)
    plain, scale = Norm(eps, affine=False), config.number("qk_scale_factor") * head_dim**-0.5
    qk_norm, scores = QKNorm(plain), Scores(scale)
    attention = GQA(
        num_heads, num_kv_heads, head_dim, rope, None, bias, bias, qk_norm=qk_norm, scores=scores, weakened=Gate()
    )
    mixers = common.in_layers(attention, windows, [rope if each else None for each in _turned(config, spaced)])
    mlp = GatedMLP(config.size("intermediate_size"), config.choice("hidden_activation", common.ACTIVATIONS))
    before, behind = (Norm(each, 1.0, "after_weight") for each in (eps, config.number("post_norm_eps")))
    made = common.every_layer(
        common.decoder(config, mixers, [mlp] * layers, before), post_attention_norm=behind, post_ffn_norm=behind
    )
    return replace(
        made,
        final_norm=Norm(eps, cast="after_weight"),
        embedding=Embedding(norm=plain),
        logit_scale=config.number("output_multiplier"),
        logit_softcap=config.number("final_logit_softcapping"),
    )


def _turned(config: Config, default: list[bool]) -> list[bool]:
    """Where `layer_rope_theta` is not 0; which number it is has no effect."""
    listed = config.get("layer_rope_theta")
    if listed is None:
        return default
    if not isinstance(listed, list) or len(listed) != len(default):
        raise ValueError(f"config.json: layer_rope_theta is {shown(listed)}, expected a number for each layer")
    return [number("layer_rope_theta", each, low=0.0) != 0 for each in listed]
