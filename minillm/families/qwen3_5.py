"""Llama, except: all that Qwen3-Next changes, with a dense feed-forward.

Qwen3.5 0.8B, 2B, 4B, 9B, 27B, Qwen3.6-27B (2026), with Qwen3-VL's tower, of which no layer is tapped. What x is
multiplied with on its way into a recurrent layer lies in four tensors, one of them q, k and v in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import llama, qwen3_vl
from minillm.families.recurrent import hybrid
from minillm.families.shared import common, wrapped
from minillm.spec import Decoder, Mixer
from minillm.spec.media import Media

DEFAULTS = {
    **llama.DEFAULTS,
    **hybrid.DEFAULTS,
    "vocab_size": 248320,
    "intermediate_size": 12288,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "attn_output_gate": True,
    "output_gate_type": "silu",
    "mamba_ssm_dtype": "float32",
}
INPUTS = {
    f"{hybrid.LAYER}in_proj_qkv.weight": f"{hybrid.MIXER}qkvz.weight[q+k+v]",
    f"{hybrid.LAYER}in_proj_z.weight": f"{hybrid.MIXER}qkvz.weight[z]",
    f"{hybrid.LAYER}in_proj_b.weight": f"{hybrid.MIXER}ba.weight[b]",
    f"{hybrid.LAYER}in_proj_a.weight": f"{hybrid.MIXER}ba.weight[a]",
}


def rules_with(ffn: Mapping[str, str]) -> dict[str, str]:
    """All rules, given those of a decoder with its feed-forwards."""
    text = wrapped.rules({**ffn, **common.QK_NORM_RULES, **hybrid.RULES, **INPUTS}, seen=True)
    return {**text, **hybrid.PREDICTION}


RULES = rules_with(common.DENSE_RULES)
inner = wrapped.inner_of_text


def mixers(config: Config) -> list[Mixer]:
    """Raises ValueError for what no published file asks for."""
    if not config.flag("attn_output_gate"):
        raise ValueError("config.json: attn_output_gate is false; this family's attention has a gate")
    config.choice("output_gate_type", {"silu": None, "swish": None})
    config.choice("mamba_ssm_dtype", {"float32": None})
    config.without_effect(("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"))  # of the layers left out
    return hybrid.mixers(config, hybrid.gated_attention(config), hybrid.delta_net(config), hybrid.every(config))


def spec(config: Config) -> Decoder:
    dense, made = common.gated_mlp(config, "intermediate_size"), mixers(config)
    return common.decoder(config, made, [dense] * len(made), hybrid.norm(config))


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    return qwen3_vl.media(values, decoder, (11, 11, 10), {**qwen3_vl.VISION, "deepstack_visual_indexes": []})
