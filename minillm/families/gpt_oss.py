"""Llama, except: every feed-forward is a mixture of experts, whose router has a bias and weighs the chosen ones by a
softmax over them; experts and attention have biases; SwiGLU is clamped; each head has an attention sink; every other
layer has a window of 128.

gpt-oss-20b, gpt-oss-120b (OpenAI, arXiv:2508.10925). All experts of a layer lie in one tensor, `gate_up_proj` with a
value of gate and one of up in turn: published as MXFP4 (see `weights/mxfp4.py`), `[E, 2F, H]`, or by transformers as
plain numbers the other way around, `[E, H, 2F]`.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import common, llama, rotary
from minillm.spec import GQA, ClampedSwiGLU, Decoder, MoE, Norm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "attention_bias": True,
    "sliding_window": 128,
    "layer_types": None,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    # Other names of num_experts_per_tok and of the scaling's original_max_position_embeddings.
    "experts_per_token": None,
    "initial_context_length": None,
}

EXPERTS = "model.layers.{i}.mlp.experts."
FFN = "layers.{i}.ffn."


def rules(config: Config) -> dict[str, str]:
    count = config.size("num_local_experts")
    turns, plain = f"e={count} two=2", f"e={count}"
    return {
        **common.without_mlp(common.DENSE_RULES),
        "model.layers.{i}.self_attn.sinks": "layers.{i}.attention.sinks",
        "model.layers.{i}.mlp.router.weight": f"{FFN}router.weight",
        "model.layers.{i}.mlp.router.bias": f"{FFN}router.logit_bias",
        f"{EXPERTS}gate_up_proj": f"{FFN}experts.gate_up: e h (f two) -> (e two f) h, {turns}",
        f"{EXPERTS}gate_up_proj_blocks": f"{FFN}experts.gate_up: e (f two) h -> (e two f) h, {turns}",
        f"{EXPERTS}gate_up_proj_bias": f"{FFN}experts.gate_up_bias: e (f two) -> (e two f), {turns}",
        f"{EXPERTS}down_proj": f"{FFN}experts.down: e f h -> (e h) f, {plain}",
        f"{EXPERTS}down_proj_blocks": f"{FFN}experts.down: e h f -> (e h) f, {plain}",
        f"{EXPERTS}down_proj_bias": f"{FFN}experts.down_bias: e h -> (e h), {plain}",
    }


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, bias = rotary.rope(config, head_dim), config.flag("attention_bias")
    _agrees(config, "experts_per_token", config.get("num_experts_per_tok"))
    _agrees(config, "initial_context_length", getattr(rope.scaling, "original_positions", None))
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, sinks=True)
    sliding = [i % 2 == 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    config.choice("hidden_act", {"silu": "silu"})
    activation = ClampedSwiGLU(config.number("swiglu_alpha"), config.number("swiglu_limit"))
    router = common.router(config, "num_local_experts", score="softmax_chosen", logit_bias=True)
    moe = MoE(router, config.size("intermediate_size"), activation, bias=True)
    layers = common.in_layers(attention, windows, [rope] * len(windows))
    norm = Norm(config.number("rms_norm_eps"), cast="after_weight")
    return common.decoder(config, layers, [moe] * len(layers), norm)


def _agrees(config: Config, key: str, value: object) -> None:
    if (stated := config.get(key)) not in (None, value):
        raise ValueError(f"config.json: {key} is {stated!r}, but the key that counts says {value!r}")
