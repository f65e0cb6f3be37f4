"""Published configs that list for each layer what transformers states once for each kind of layer. Their lists include
the multi-token prediction layers after the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import Config
from minillm.families.shared import common
from minillm.guard.screen import shown

KINDS, THETA = ("full_attention", "sliding_attention"), 10000.0
LISTS = ("layer_types", "mlp_layer_types", "swiglu_limits", "swiglu_limits_shared")
# The words of published files for what transformers calls otherwise.
WORDS = {"num_attention_groups": "num_key_value_heads", "moe_top_k": "num_experts_per_tok",
         "share_expert_dims": "share_expert_dim",
         **dict.fromkeys(("moe_num_experts", "num_experts", "num_local_experts"), "n_routed_experts")}  # fmt: skip
# What is read of them before a family reads.
READ = (*WORDS, "attention_other_setting", "moe_layers_enum", "rope_theta", "partial_rotary_factors", "rope_scaling")


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with keys as transformers calls them, and lists without the layers behind the last."""
    made = {WORDS.get(key, key): value for key, value in values.items()}
    count, other = made.get("num_hidden_layers"), made.pop("attention_other_setting", None)
    if isinstance(other, dict):
        made["num_sliding_attention_heads"] = other.get("num_attention_heads")
    if (sparse := made.pop("moe_layers_enum", None)) is not None and isinstance(count, int):
        listed = sparse.split(",") if isinstance(sparse, str) else sparse
        chosen = {str(each).strip() for each in listed} if isinstance(listed, list) else set()
        made["mlp_layer_types"] = [
            "sparse" if str(i) in chosen else "dense" for i in range(min(count, common.MAX_LAYERS))
        ]
    if isinstance(count, int):
        made |= {key: made[key][:count] for key in LISTS if isinstance(made.get(key), list)}
    return made if isinstance(made.get("rope_parameters"), dict) else _with_ropes(made)


def _with_ropes(made: dict[str, Any]) -> dict[str, Any]:
    """With a section of rotary parameters for each kind of layer, of which those that see everything are scaled."""
    thetas, parts, scaling = (made.pop(key, None) for key in ("rope_theta", "partial_rotary_factors", "rope_scaling"))
    listed = made.get("layer_types")
    kinds = listed if isinstance(listed, list) and listed else [KINDS[0]]
    sections: dict[str, Any] = {
        kind: {"rope_theta": _at(thetas, i, THETA), "partial_rotary_factor": _at(parts, i, 1.0)}
        for kind, i in ((kind, kinds.index(kind)) for kind in KINDS if kind in kinds)
    }
    if KINDS[0] in sections and isinstance(scaling, dict):
        sections[KINDS[0]] |= scaling
    return {**made, "rope_parameters": sections}


def _at(listed: Any, i: int, default: float) -> Any:
    """A layer's, of one for each or one for all."""
    if isinstance(listed, list):
        return listed[i] if i < len(listed) else default
    return default if listed is None else listed


def check(config: Config, key: str, values: Sequence[int], default: int) -> None:
    """Raise ValueError where `per_layer_config`, which transformers writes of layers that differ from the `default`,
    says anything but these values of this key, one for each layer."""
    stated, wanted = config.get("per_layer_config"), {str(i): {key: value} for i, value in enumerate(values)}
    if stated is None:
        return
    own = {name.lstrip("0") or "0": each for name, each in stated.items()} if isinstance(stated, dict) else {"": None}
    if {**{name: {key: default} for name in wanted}, **own} != wanted:
        raise ValueError(f"config.json: per_layer_config is {shown(stated)}, and only {key}, as other keys say it, "
                         "may differ by layer")  # fmt: skip
