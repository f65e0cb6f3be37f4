"""Llama, except: every feed-forward is a mixture of experts, whose router has a bias and weighs the chosen ones by a
softmax over them; experts and attention have biases; SwiGLU is clamped; each head has an attention sink; every other
layer has a window of 128; norms are rounded after their weight; YaRN does not round where its ramp begins and ends.

gpt-oss-20b, gpt-oss-120b (OpenAI, arXiv:2508.10925). All experts of a layer lie in one tensor, `gate_up_proj` with a
value of gate and one of up in turn: published as MXFP4 (`weights/formats/mx.py`), `[E, 2F, H]`, or by transformers as
plain numbers the other way around, `[E, H, 2F]`.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, ClampedSwiGLU, Decoder, MoE, Norm

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
    "num_experts_per_tok": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000.0,
    "rope_parameters": YARN, "attention_bias": True, "sliding_window": 128, "layer_types": None,
    "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
    # Other names of num_experts_per_tok and of the scaling's original_max_position_embeddings.
    "experts_per_token": None,
    "initial_context_length": None,
}  # fmt: skip

EXPERTS = "model.layers.{i}.mlp.experts."
FFN = "layers.{i}.ffn."


def rules(config: Config) -> dict[str, str]:
    count = config.size("num_local_experts")
    pairs, plain = f"e={count} two=2", f"e={count}"
    return {
        **common.without_mlp(common.DENSE_RULES),
        "model.layers.{i}.self_attn.sinks": "layers.{i}.attention.sinks",
        "model.layers.{i}.mlp.router.weight": f"{FFN}router.weight",
        "model.layers.{i}.mlp.router.bias": f"{FFN}router.logit_bias",
        f"{EXPERTS}gate_up_proj": f"{FFN}experts.gate_up: e h (f two) -> (e two f) h, {pairs}",
        f"{EXPERTS}gate_up_proj_blocks": f"{FFN}experts.gate_up: e (f two) h -> (e two f) h, {pairs}",
        f"{EXPERTS}gate_up_proj_bias": f"{FFN}experts.gate_up_bias: e (f two) -> (e two f), {pairs}",
        f"{EXPERTS}down_proj": f"{FFN}experts.down: e f h -> (e h) f, {plain}",
        f"{EXPERTS}down_proj_blocks": f"{FFN}experts.down: e h f -> (e h) f, {plain}",
        f"{EXPERTS}down_proj_bias": f"{FFN}experts.down_bias: e h -> (e h), {plain}",
    }


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    values = config.rope()
    if config.get("rope_scaling") is None and config.get("rope_parameters") is None:  # null means the default too
        values = {**YARN, "rope_theta": values["rope_theta"]}
    rope, bias = rotary.rope(config, head_dim, values), config.flag("attention_bias")
    _agrees(config, "experts_per_token", "num_experts_per_tok", config.get("num_experts_per_tok"))
    original = getattr(rope.scaling, "original_positions", None)
    _agrees(config, "initial_context_length", "original_max_position_embeddings of its scaling", original)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, weakened="sinks")
    sliding = [i % 2 == 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    config.choice("hidden_act", {"silu": "silu"})  # of the gate, before it was clamped; no other is known
    activation = ClampedSwiGLU(config.number("swiglu_alpha"), config.number("swiglu_limit"))
    router = common.router(config, "num_local_experts", score="softmax_chosen", logit_bias=True)
    moe = MoE(router, config.size("intermediate_size"), activation, bias=True)
    layers = common.in_layers(attention, windows, [rope] * len(windows))
    norm = Norm(config.number("rms_norm_eps"), cast="after_weight")
    return common.decoder(config, layers, [moe] * len(layers), norm)


def _agrees(config: Config, key: str, other: str, value: object) -> None:
    if (stated := config.get(key)) not in (None, value):
        raise ValueError(f"config.json: {key} is {str(stated)[:40]}, but {other} is {value}; they mean the same")
