"""Indexers that choose blocks of keys: their sizes and names, and the layers that have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import BlockIndexer, Norm

KINDS = ("full_attention", "minimax_m3_sparse")
DEFAULTS = {"index_block_size": 128, "index_topk_blocks": 16, "index_local_blocks": 1, "index_head_dim": 128,
            "index_n_heads": 4, "layer_types": None}  # fmt: skip
# What published files call these, and what else they say of an indexer, of which one value is known.
PUBLISHED = {"sparse_block_size": "index_block_size", "sparse_topk_blocks": "index_topk_blocks",
             "sparse_local_block": "index_local_blocks", "sparse_index_dim": "index_head_dim",
             "sparse_num_index_heads": "index_n_heads"}  # fmt: skip
ONLY = {"use_sparse_attention": True, "sparse_score_type": "max", "sparse_init_block": 0}
OWN, INDEXER = "model.layers.{i}.self_attn.index_", "layers.{i}.attention.indexer."
RULES = {
    f"{OWN}{name}.weight": f"{INDEXER}{ours}.weight"
    for name, ours in {"q_proj": "q", "k_proj": "k", "q_norm": "q_norm", "k_norm": "k_norm"}.items()
}


def spelled(section: Any) -> dict[str, Any]:
    """What the published section `sparse_attention_config` says, in the keys of `DEFAULTS`."""
    if not isinstance(section, dict):
        raise ValueError(f"config.json: sparse_attention_config is {shown(section)}, expected an object")
    for key, value in ONLY.items():
        if section.get(key, value) != value:
            raise ValueError(f"config.json: {key} is {shown(section[key])}; this family's code knows {value!r} only")
    made = {ours: section[key] for key, ours in PUBLISHED.items() if key in section}
    indexed, valueless = (section.get(f"sparse_{key}") for key in ("attention_freq", "disable_index_value"))
    if valueless is not None and valueless != indexed:
        raise ValueError(
            "config.json: sparse_disable_index_value differs from sparse_attention_freq: indexers with values"
        )
    return made if indexed is None else made | {"layer_types": common.words("sparse_attention_freq", indexed, KINDS)}


def stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the published section spelled so, which counts, but for layers that are listed already."""
    given = dict(values)
    section = given.pop("sparse_attention_config", None)
    made = {} if section is None else spelled(section)
    kinds = given.get("layer_types") or made.get("layer_types")
    return {**given, **made, **({} if kinds is None else {"layer_types": kinds})}


def indexers(config: Config, turned: int, num_kv_heads: int, norm: Norm) -> list[BlockIndexer | None]:
    """That of each layer; `turned` values of each head turn."""
    head_dim, heads = config.size("index_head_dim"), config.size("index_n_heads")
    size, top_k = config.positions("index_block_size"), config.positions("index_topk_blocks")
    local, layers = config.get("index_local_blocks"), common.num_layers(config)
    kinds: Any = config.get("layer_types") or [KINDS[0]] * layers
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"config.json: layer_types must list {' or '.join(KINDS)} for each of the {layers} layers")
    if KINDS[1] not in kinds:
        return [None] * layers
    if heads != num_kv_heads:
        raise ValueError(f"config.json: index_n_heads is {heads}; it must be the number of kv heads, {num_kv_heads}")
    if head_dim < turned:
        raise ValueError(f"config.json: index_head_dim {head_dim} is less than the {turned} values that turn")
    if type(local) is not int or not 0 <= local <= top_k:
        raise ValueError(f"config.json: index_local_blocks is {shown(local)}, expected a number from 0 to {top_k}")
    made = BlockIndexer(head_dim, size, top_k, norm, local)
    return [made if kind == KINDS[1] else None for kind in kinds]
