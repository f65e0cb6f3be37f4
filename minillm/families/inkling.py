"""Llama, except: nothing turns, and each query adds to its scores what it makes of a learned vector for each distance;
keys, values, and what attention and feed-forward give go through short convolutions that are added to them; q and k are
normalised behind that; five of six layers have a window and heads of their own; the embedding is normed; feed-forwards
are mixtures whose router weighs the shared experts with those that it has chosen.

Inkling (Thinking Machines, 2026), without the parts that see and hear, and without those that predict several tokens.
transformers counts padding on the left among the positions that scale scores in long texts, which is not done here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, Config
from minillm.families.recurrent.hybrid import MAX_KERNEL
from minillm.families.shared import common, distances
from minillm.guard.screen import shown
from minillm.spec import GQA, KV, AddedConv, Decoder, GatedMLP, MoE, Norm, QKNorm, Relative, Scores, Temperature

FIXED = {"shared_expert_sink": True, "tie_word_embeddings": False}
UNUSED = ("rms_norm_eps_moe_gate", "num_mtp_layers", "chain_hidden_post_norm", "mtp_hidden_states_first",
          "mtp_local_layer_ids", "number_of_conv_states", "local_layer_ids", "dense_mlp_idx")  # fmt: skip
DEFAULTS = {
    **FIXED, **dict.fromkeys((*UNUSED, "unpadded_vocab_size", "log_scaling_n_floor", "layer_types", "mlp_layer_types")),
    "vocab_size": 201024, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 66,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 16, "swa_head_dim": 128, "sliding_window_size": 512, "d_rel": 16, "rel_extent": 1024,
    "log_scaling_alpha": 0.1, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "conv_kernel_size": 4,
    "hidden_act": "silu", "moe_intermediate_size": 3072, "n_routed_experts": 256, "num_experts_per_tok": 6,
    "n_shared_experts": 2, "route_scale": 8.0, "logits_mup_width_multiplier": 24.0,
}  # fmt: skip
MAX_SHARED = 64  # far more than any has
HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
rules, inner = distances.rules, distances.inner


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect((*UNUSED, "log_scaling_alpha"))  # the last without a floor
    layers, norm = common.num_layers(config), Norm(config.number("rms_norm_eps"))
    windows = common.typed_windows(config, config.size("sliding_window_size", MAX_POSITIONS), _sliding(config, layers))
    kernel = config.size("conv_kernel_size", MAX_KERNEL)
    warm: Temperature | None = None
    if (floor := config.optional_size("log_scaling_n_floor")) is not None:
        warm = Temperature(config.number("log_scaling_alpha"), floor, 1, stepped=False)
    made = {window: _attention(config, window, norm, kernel, warm) for window in {*windows}}
    dense = common.gated_mlp(config, "intermediate_size")
    scale = config.number("route_scale")
    router = common.router(config, "n_routed_experts", score="sigmoid", renormalize=True, scale=scale, bias=True)
    width, count = config.size("moe_intermediate_size"), config.size("n_shared_experts", MAX_SHARED)
    moe = MoE(router, width, dense.activation, GatedMLP(width * count, dense.activation), weighed=count)
    first = 0 if config.get("dense_mlp_idx") is None else common.first_layers(config, "dense_mlp_idx")
    ffn = common.typed_layers(config, moe, dense, [i >= first for i in range(layers)])
    decoder = common.decoder(config, [made[window] for window in windows], ffn)
    decoder = common.every_layer(decoder, scaled="ffn", conv=AddedConv(decoder.hidden_size, kernel))
    used = min(config.optional_size("unpadded_vocab_size") or decoder.vocab_size, decoder.vocab_size)
    embedding = replace(decoder.embedding, norm=norm, unused=decoder.vocab_size - used)
    divisor = config.number("logits_mup_width_multiplier")
    return replace(decoder, vocab_size=used, embedding=embedding, logit_scale=1 / divisor)


def _attention(config: Config, window: int | None, norm: Norm, kernel: int, warm: Temperature | None) -> GQA:
    """Of layers with this window."""
    count, kv, size = (config.size(f"{'swa_' if window else ''}{key}") for key in HEADS)
    if count % kv:
        raise ValueError(f"config.json: {count} attention heads are no multiple of {kv} kv heads")
    extent = window or config.size("rel_extent", MAX_POSITIONS)
    scores = Scores(1 / size, temperature=None if window else warm, relative=Relative(config.size("d_rel"), extent))
    return GQA(count, kv, size, None, window, qk_norm=QKNorm(norm), scores=scores, kv=KV(conv_kernel=kernel))


def _sliding(config: Config, layers: int) -> list[bool]:
    """Which layers have a window where `layer_types` does not say so."""
    listed: Any = config.get("local_layer_ids")
    if listed is None:
        return [i % 6 != 5 for i in range(layers)]
    if not isinstance(listed, list) or any(type(each) is not int for each in listed):
        raise ValueError(f"config.json: local_layer_ids is {shown(listed)}, expected a list of layer numbers")
    return [i in listed for i in range(layers)]
