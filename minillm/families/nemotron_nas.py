"""Llama, except: each layer has the number of kv heads and the MLP width that an architecture search left it; some have
no attention, or no MLP, and then not its norm either.

Llama-3.3-Nemotron-Super-49B, Llama-3.1-Nemotron-Ultra-253B (NVIDIA, arXiv:2411.19146). Layers with a linear map in
place of either, as in Llama-3.1-Nemotron-51B, are refused.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config, number
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, GatedMLP, Layer, Norm

GRAIN = 256  # which the width of an MLP is a multiple of
FIXED = {"replace_with_linear": False, "sparsify": None}
OF_ATTENTION = {"window_length": None, "num_sink_tokens": None, "unshifted_sink": False,
                "use_prefill_window_in_sink_attention": False}  # fmt: skip
KNOWN = ("no_op", "n_heads_in_group", "ffn_mult")
DEFAULTS = {**llama.DEFAULTS, "block_configs": None}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    blocks, layers = config.get("block_configs"), common.num_layers(config)
    config.without_effect(("num_key_value_heads", "intermediate_size"))
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise ValueError(f"config.json: block_configs is {shown(blocks)}, expected one object for each layer")
    num_heads, _, head_dim = common.heads(config)
    rope, norm = rotary.rope(config, head_dim), Norm(config.number("rms_norm_eps"))
    bias, mlp_bias = config.flag("attention_bias"), config.flag("mlp_bias")
    activation, made = config.choice("hidden_act", common.ACTIVATIONS), []
    for i, block in enumerate(blocks):
        own, other = (_part(block, i, name) for name in ("attention", "ffn"))
        attention = ffn = None
        if own is not None:
            group = own.get("n_heads_in_group")
            if type(group) is not int or group < 1 or num_heads % group:
                raise ValueError(f"config.json: n_heads_in_group is {shown(group)} in layer {i} of {num_heads} heads")
            attention = GQA(num_heads, num_heads // group, head_dim, rope, qkv_bias=bias, out_bias=bias)
        if other is not None:
            width = int(2 * number("ffn_mult", other.get("ffn_mult"), high=1e3) * config.size("hidden_size") / 3)
            ffn = GatedMLP(-(-width // GRAIN) * GRAIN, activation, mlp_bias)
        if attention is None and ffn is None:
            raise ValueError(f"config.json: layer {i} has neither attention nor an MLP, which no published model has")
        made.append(Layer(norm if attention else None, attention, norm if ffn else None, ffn))
    return Decoder(
        config.size("vocab_size"),
        config.size("hidden_size"),
        tuple(made),
        norm,
        config.flag("tie_word_embeddings"),
        rotary.context(config, rope),
    )


def _part(block: Any, i: int, name: str) -> dict[str, Any] | None:
    """What a layer has of these, None where that is nothing."""
    found = block.get(name) if isinstance(block, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"config.json: block_configs has {shown(found)} for {name} of layer {i}, expected an object")
    if found.get("no_op"):
        return None
    fixed = {**FIXED, **(OF_ATTENTION if name == "attention" else {})}
    for key, value in found.items():
        if key not in KNOWN and value not in (None, fixed.get(key, False)):
            raise ValueError(f"config.json: {key} of {name} of layer {i} is {shown(value)}; {fixed.get(key)!r} works")
    return found
