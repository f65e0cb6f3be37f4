"""Layers of one part with one norm: how a config says which, and what their tensors are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families.recurrent import state_space
from minillm.families.shared import common
from minillm.guard.screen import shown

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
KINDS = {**{name: name for name in LETTERS.values()}, "linear_attention": "mamba", "full_attention": "attention"}
LAYER, MIXER, FFN = "backbone.layers.{i}.", "layers.{i}.attention.", "layers.{i}.ffn."
RULES = {
    "backbone.embeddings.weight": "embedding.weight",
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    **state_space.rules(f"{LAYER}mixer."),
    **{f"{LAYER}mixer.{part}_proj.weight": f"{MIXER}qkv.weight[{part}]" for part in "qkv"},
    f"{LAYER}mixer.o_proj.weight": f"{MIXER}out.weight",
    f"{LAYER}mixer.up_proj.weight": f"{FFN}up.weight",
    f"{LAYER}mixer.down_proj.weight": f"{FFN}down.weight",
    f"{LAYER}mixer.gate.weight": f"{FFN}router.weight",
    f"{LAYER}mixer.gate.e_score_correction_bias": f"{FFN}router.bias",
    f"{LAYER}mixer.experts.{{e}}.up_proj.weight": f"{FFN}experts.gate_up[{{e}}.up]",
    f"{LAYER}mixer.experts.{{e}}.down_proj.weight": f"{FFN}experts.down[{{e}}]",
    **{f"{LAYER}mixer.shared_experts.{part}_proj.weight": f"{FFN}shared.{part}.weight" for part in ("up", "down")},
    f"{LAYER}mixer.fc1_latent_proj.weight": f"{FFN}into.weight",
    f"{LAYER}mixer.fc2_latent_proj.weight": f"{FFN}out_of.weight",
    "mtp.*": common.AHEAD,
}


def listed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with a list of kinds and their number, where a pattern of letters or a list says what layers are."""
    pattern, named = values.get("hybrid_override_pattern"), values.get("layers_block_type", values.get("layer_types"))
    if named is None and isinstance(pattern, str):
        named = [LETTERS.get(letter, letter) for letter in pattern]
    rest = {key: value for key, value in values.items() if key not in ("hybrid_override_pattern", "layer_types")}
    if not isinstance(named, list):
        return values if named is None else {**rest, "layers_block_type": named}
    return {**rest, "layers_block_type": named, "num_hidden_layers": len(named)}


def kinds(config: Config) -> list[str]:
    """Of each layer: mamba, attention, mlp or moe."""
    found = config.get("layers_block_type")
    if not isinstance(found, list) or not all(isinstance(each, str) and each in KINDS for each in found):
        raise ValueError(f"config.json: layers_block_type is {shown(found)}, expected a list of {', '.join(KINDS)}")
    if not 0 < len(found) <= common.MAX_LAYERS:
        raise ValueError(f"config.json: layers_block_type has {len(found)} layers, expected 1 to {common.MAX_LAYERS}")
    return [KINDS[each] for each in found]


def rules(config: Config) -> dict[str, str]:
    """With the norm of each layer, which stands before what the layer is."""
    norms = {"mamba": "attention_norm", "attention": "attention_norm", "mlp": "ffn_norm", "moe": "ffn_norm"}
    return RULES | {
        f"backbone.layers.{i}.norm.weight": f"layers.{i}.{norms[kind]}.weight" for i, kind in enumerate(kinds(config))
    }
