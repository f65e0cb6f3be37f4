"""Checkpoints as their makers give them out: whose names the tensors have, and which parameters these fill.

Meta and Mistral use the same names, for the code of the one grew out of that of the other. Both turn consecutive pairs
of q and k, where parameters here have the halves of a head: rows are put in that order while they are read, as those of
GGUF files are. What a `params.json` says is in `meta.py` and `mistral.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minillm.config import Config
from minillm.families.gguf.rules import TURN
from minillm.families.makers import meta, mistral
from minillm.families.makers.params import NAMES
from minillm.weights.rules import DROP, Rules

LAYER, OURS = "layers.{i}.", "layers.{i}."
IMAGES = f"{DROP}: the part that reads images, which is not supported"
RULES = {
    "tok_embeddings.weight": "embedding.weight",
    "norm.weight": "norm.weight",
    "output.weight": "head.weight",
    f"{LAYER}attention_norm.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}attention.wq.weight": f"{OURS}attention.qkv.weight[q]",
    f"{LAYER}attention.wk.weight": f"{OURS}attention.qkv.weight[k]",
    f"{LAYER}attention.wv.weight": f"{OURS}attention.qkv.weight[v]",
    f"{LAYER}attention.wo.weight": f"{OURS}attention.out.weight",
    f"{LAYER}ffn_norm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}feed_forward.w1.weight": f"{OURS}ffn.gate_up.weight[gate]",
    f"{LAYER}feed_forward.w3.weight": f"{OURS}ffn.gate_up.weight[up]",
    f"{LAYER}feed_forward.w2.weight": f"{OURS}ffn.down.weight",
    f"{LAYER}feed_forward.gate.weight": f"{OURS}ffn.router.weight",
    f"{LAYER}feed_forward.experts.{{e}}.w1.weight": f"{OURS}ffn.experts.gate_up[{{e}}.gate]",
    f"{LAYER}feed_forward.experts.{{e}}.w3.weight": f"{OURS}ffn.experts.gate_up[{{e}}.up]",
    f"{LAYER}feed_forward.experts.{{e}}.w2.weight": f"{OURS}ffn.experts.down[{{e}}]",
    "rope.freqs": DROP,  # computed
    **dict.fromkeys(("vision_encoder.*", "vision_language_adapter.*", "patch_merger.*"), IMAGES),
    "pre_mm_projector_norm.*": IMAGES,
}


def config(values: Mapping[str, Any], head: Callable[[], tuple[int, ...] | None]) -> dict[str, Any]:
    """The config.json of a checkpoint with this params.json; `head` tells the shape of output.weight, None where there
    is none. Raises ValueError for what no family here is."""
    if _of_meta(values):
        return meta.config(values, head())
    if "hidden_dim" in values:
        return mistral.config(values)
    raise ValueError("params.json has neither multiple_of, as Meta's, nor hidden_dim, as Mistral's; is it of a model?")


def tokens(values: Mapping[str, Any]) -> tuple[str, list[str], list[int]] | None:
    """What a vocabulary of byte sequences does not say itself: how texts are split, its special tokens, and which of
    these end an answer. None where the maker's vocabularies say it."""
    return meta.tokens(values) if _of_meta(values) else None


def _of_meta(values: Mapping[str, Any]) -> bool:
    inner = values.get("model")
    return "multiple_of" in (inner if isinstance(inner, dict) else values)


def rules(config: Config) -> Rules | None:
    """The table for such a checkpoint, or a folder made of one; None for any other."""
    if config.values.get(NAMES) is None:
        return None
    config.choice(NAMES, {"meta": None, "mistral": None})
    counts = {"wq": config.size("num_attention_heads"), "wk": config.size("num_key_value_heads")}
    turned = {f"{LAYER}attention.{part}.weight": TURN.format(heads=n) for part, n in counts.items()}
    return {name: f"{to}: {turned[name]}" if name in turned else to for name, to in RULES.items()}
