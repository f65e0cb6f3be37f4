"""Which module of transformers a module of minillm stands for: derived from what fills it.

A checkpoint's tensor "model.layers.0.self_attn.o_proj.weight" fills "layers.0.attention.out.weight" here, and in
transformers the module of that name; so the weight table of a family is its name map. What holds several modules is
named by what it holds, and a family file lists the names that transformers changes (`TRANSFORMERS`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from minillm.model.decoder import Decoder
from minillm.model.moe import MoE
from minillm.model.norm import NoNorm
from minillm.weights.rules import Plan

BEHIND = ("positions", "per_layer.embedding")  # tables whose rows are seen, or multiplied, only in what they go into
NORMS = ("attention_norm", "ffn_norm")  # whose input and output are known from what is around them


@dataclass(frozen=True)
class Site:
    """A module of ours and the reference's name of it: "" where it has none, and input and output are known from what
    is around it. `part` names rows of a fused product that the reference has by themselves: `rows` from `start` on."""

    ours: str
    theirs: str
    part: str = ""
    start: int = 0
    rows: int | None = None

    @property
    def name(self) -> str:
        return self.ours + (f"[{self.part}]" if self.part else "")


def sites(model: Decoder, planned: Plan, renamed: Mapping[str, str], theirs: Collection[str]) -> list[Site]:
    """All pairs, in the order in which a forward pass comes to their end: what a module holds goes before it.

    `theirs` are the names of the reference's modules, `renamed` what its names have in place of a checkpoint's.
    """
    filled = _filled(model, planned, renamed)
    holders = {site.ours: site.theirs for site, _ in filled}
    pairs = {(site.ours, site.part): site for site, as_here in filled if as_here}
    for index, layer in enumerate(model.layers):
        own = f"layers.{index}"
        attention = _parent(holders.get(f"{own}.attention.out") or holders.get(f"{own}.attention.output"))
        if layer.attention is not None:
            pairs[f"{own}.attention", ""] = Site(f"{own}.attention", attention)
        # changes of what layers share are with the layer that holds it
        names = [name for inner, name in holders.items() if inner.startswith(f"{own}.") and "_change." not in inner]
        pairs[own, ""] = Site(own, around(names))
        if layer.ffn is None:
            continue
        if isinstance(layer.ffn, MoE):
            router = holders.get(f"{own}.ffn.router")
            ffn = experts = _parent(router)
            if f"{ffn}.experts" not in theirs:  # the router is a module with parts, and stands beside the experts
                pairs[f"{own}.ffn.router", ""] = Site(f"{own}.ffn.router", ffn)
                ffn, experts = "", _parent(ffn)
            pairs[f"{own}.ffn.experts", ""] = Site(f"{own}.ffn.experts", f"{experts}.experts")
            shared = "" if layer.ffn.router.weighed else _parent(holders.get(f"{own}.ffn.shared.down"))
            pairs[f"{own}.ffn.shared", ""] = Site(f"{own}.ffn.shared", shared)
            if ffn and shared and not shared.startswith(f"{ffn}."):  # it stands beside what is added to it
                ffn = ""
        else:
            ffn = _parent(holders.get(f"{own}.ffn.down"))
        pairs[f"{own}.ffn", ""] = Site(f"{own}.ffn", ffn)
    pairs["head", ""] = Site("head", holders.get("head", "lm_head"))
    found = {key: site for key, site in pairs.items() if site.theirs and site.theirs in theirs}
    for own in (f"layers.{index}" for index in range(len(model.layers))):
        site = found.get((f"{own}.ffn", ""))
        if site and site.theirs == pairs[own, ""].theirs:  # no module: its products are the layer's own
            found[f"{own}.ffn", ""] = Site(f"{own}.ffn", "")
    for name in ("norm", *(f"layers.{i}.{norm}" for i in range(len(model.layers)) for norm in NORMS)):
        before = f"{name.removesuffix('ffn_norm')}post_attention_norm"
        known = not name.endswith("ffn_norm") or (before, "") in found or _is_idle(model, before)
        if known and not _is_idle(model, name):
            found.setdefault((name, ""), Site(name, ""))
    order = {name: index for index, name in enumerate([*_in_order(model), "head"])}
    return sorted(found.values(), key=lambda site: (order[site.ours], site.start))


def _is_idle(model: Decoder, name: str) -> bool:
    return isinstance(model.get_submodule(name), (NoNorm, nn.ModuleList))


def same(model: Decoder) -> list[Site]:
    """Every module under its own name, for a reference that is a model of minillm too."""
    names = [name for name in [*_in_order(model), "head"] if name]
    return [Site(name, name) for name in dict.fromkeys(names) if name == "head" or not _is_idle(model, name)]


def _filled(model: Decoder, planned: Plan, renamed: Mapping[str, str]) -> list[tuple[Site, bool]]:
    """The modules that tensors fill, whole or rows of a fused product, and whether the values lie as they do here."""
    found = []
    for tensor, to in planned.assignments.items():
        (ours, _, leaf), name = to.parameter.rpartition("."), planned.spelled.get(tensor, tensor)
        theirs = name.rpartition(".")[0]
        for before, after in renamed.items():
            theirs = theirs.replace(before, after)
        if leaf == "weight" and ours not in BEHIND:
            whole = model.get_parameter(to.parameter).shape[0] == to.shape[0]
            part = ("", 0, None) if whole else (theirs.rpartition(".")[2], to.start, to.shape[0])
            found.append((Site(ours, theirs, *part), to.layout is None))
    return found


def _in_order(module: nn.Module, name: str = "") -> list[str]:
    """The names of a module and all within, each behind those it holds."""
    inner = [_in_order(child, f"{name}.{leaf}" if name else leaf) for leaf, child in module.named_children()]
    return [*itertools.chain.from_iterable(inner), name]


def around(names: list[str]) -> str:
    """The innermost module that holds all of these."""
    levels = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def _parent(name: str | None) -> str:
    return name.rpartition(".")[0] if name else ""
