"""Where two towers differ first on a picture, layer by layer: ours, and transformers' with the same weights.

Both get the same patches. Each layer is given what the reference gave its own (its own error), and what ours before it
made (the error so far); errors are those of `compare.error`. Windows lie in another order there, which a picture of
noise tells, as no two of its patches are alike.

Shapes: N patches, E hidden size.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from minillm.diff.compare import Error, error
from minillm.diff.names import around
from minillm.families.media import media
from minillm.llm import LLM
from minillm.media import pictures, settings, sources
from minillm.model.tower.tower import Tower
from minillm.report import reference, seeing
from minillm.spec.media import Media, Patches
from minillm.weights.rules import plan

Trace = dict[str, tuple[Tensor, Tensor]]  # of each layer what it was given and what it gave, [N, E] each


def compared(llm: LLM, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report that `--json` prints. Raises ValueError for a model that sees no pictures."""
    found = media(llm.values)
    if found is None or found[0].kind != "image":
        raise ValueError(f"{llm.folder}: this model sees no pictures; leave --image out")
    made, rules, _ = found
    given = pixels(llm, made, arguments.image)
    theirs = reference.load(llm.folder, seen=True, dtype=llm.model.dtype, attn_implementation="sdpa").to(llm.device)
    ours = llm.prompts.reader.tower
    planned = plan([*theirs.state_dict()], rules, ours.destinations())
    layers = [
        around([name for name, to in planned.assignments.items() if to.parameter.startswith(f"layers.{index}.")])
        for index in range(len(ours.layers))
    ]
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(0))
    order = _order(_ours(ours, made, noise)[0], _theirs(theirs, layers, made, noise)[0])
    mine, tokens = _ours(ours, made, given)
    other, wanted = _theirs(theirs, layers, made, given)
    other = {name: (one[order], two[order]) for name, (one, two) in other.items()}
    forced, own = _ours(ours, made, given, other)
    eps = torch.finfo(llm.model.dtype).eps
    embedded = error(mine["layers.0"][0], other["layers.0"][0], eps)
    rows = [("patches", embedded, embedded)]
    rows += [(name, error(forced[name][1], y, eps), error(mine[name][1], y, eps)) for name, (_, y) in other.items()]
    rows.append(("tokens", error(own, wanted, eps), error(tokens, wanted, eps)))
    return _report(llm, arguments, given, rows, len(order))


def pixels(llm: LLM, made: Media, image: str) -> Tensor:
    """A picture as the tower is shown it, `[3, height, width]`; of a size alone noise."""
    chosen = settings.read(llm.folder, made)
    assert isinstance(chosen, settings.Settings)
    chosen = chosen.within(None, pictures.DEFAULT_MOST)
    if seeing.SIZE.fullmatch(image) is None:
        return pictures.pixels(pictures.opened(sources.source("image", image, image)), chosen)
    width, height = seeing.size_of(image)
    return torch.randn(3, *pictures.size_of(height, width, chosen), generator=torch.Generator().manual_seed(1))


def _patches(made: Media, given: Tensor) -> tuple[Tensor, tuple[int, int]]:
    embed = made.encoder.embed
    assert isinstance(embed, Patches)
    return pictures.patches(given, embed.side, embed.merge, embed.frames)


def _ours(tower: Tower, made: Media, given: Tensor, forced: Trace | None = None) -> tuple[Trace, Tensor]:
    """What goes through the layers, row by row as it comes, and the tokens; where layers are `forced`, each gets what
    is given there."""
    values, grid = _patches(made, given)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    done = dict.fromkeys(forced or {}, 0)  # windows of one size go through by themselves

    def before(name: str) -> Any:
        def hook(layer: Any, given: tuple[Any, ...]) -> Any:
            if forced is None:
                return None
            x, first = given[0], done[name]
            done[name] += x.shape[0] * x.shape[1]
            return (forced[name][0][first : done[name]].view_as(x).to(x.dtype), *given[1:])

        return hook

    def behind(name: str) -> Any:
        return lambda layer, given, y: found.setdefault(name, []).append((given[0].flatten(0, 1), y.flatten(0, 1)))

    hooks = []
    for index, layer in enumerate(tower.layers):
        hooks += [layer.register_forward_pre_hook(before(f"layers.{index}"))]
        hooks += [layer.register_forward_hook(behind(f"layers.{index}"))]
    try:
        tokens = tower.of_picture(values.to(next(tower.parameters()).device), grid).embeddings
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: (torch.cat([x for x, _ in each]), torch.cat([y for _, y in each])) for name, each in found.items()
    }, tokens


@torch.inference_mode()
def _theirs(model: Any, layers: Sequence[str], made: Media, given: Tensor) -> tuple[Trace, Tensor]:
    found: Trace = {}

    def note(name: str) -> Any:
        def hook(module: Any, given: tuple[Any, ...], options: Mapping[str, Any], result: Any) -> None:
            x = given[0] if given else options["hidden_states"]
            y = result[0] if isinstance(result, tuple) else result
            found[name] = x.reshape(-1, x.shape[-1]).clone(), y.reshape(-1, y.shape[-1]).clone()

        return hook

    hooks = [
        model.get_submodule(name).register_forward_hook(note(f"layers.{index}"), with_kwargs=True)
        for index, name in enumerate(layers)
    ]
    try:
        tokens = reference.embeddings(model, reference.inputs(made, given, *_patches(made, given)))
    finally:
        for hook in hooks:
            hook.remove()
    return found, tokens.flatten(0, -2)


def _order(ours: Trace, theirs: Trace) -> Tensor:
    """Which of the reference's rows is each of ours, int64 `[N]`, where every row is another."""
    mine, other = ours["layers.0"][0], theirs["layers.0"][0]
    return torch.cat([torch.cdist(some.float(), other.float()).argmin(1) for some in mine.split(1024)])


def _report(
    llm: LLM, arguments: argparse.Namespace, given: Tensor, rows: Sequence[tuple[str, Error, Error]], patches: int
) -> dict[str, Any]:
    first = next((name for name, own, _ in rows if not own.max <= arguments.tolerance), None)  # NaN diverges
    listed = [{"name": name, "own": asdict(own), "so_far": asdict(so_far)} for name, own, so_far in rows]
    return {
        "weights": str(llm.folder),
        "against": "transformers",
        "picture": arguments.image,
        "brought_to": [given.shape[2], given.shape[1]],
        "patches": patches,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "tolerance": arguments.tolerance,
        "rows": listed,
        "first": first,
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table, and where they differ first."""
    wide, high = report["brought_to"]
    found = [
        f"{report['weights']}: the tower on {report['picture']} at {wide} x {high}, {report['patches']:,} patches, "
        f"{report['dtype']}, against {report['against']}",
        f"{'':16}{'own error':>12}{'of all':>10}{'so far':>12}{'of all':>10}   in units in the last place",
    ]
    for row in report["rows"]:
        cells = [f"{each['max']:12.2f}{each['relative']:10.1e}" for each in (row["own"], row["so_far"])]
        found.append(f"{row['name']:16}{''.join(cells)}{'  <- first' if row['name'] == report['first'] else ''}")
    beyond = f"{report['first']} is the first beyond {report['tolerance']:g}"
    return [*found, f"no divergence beyond {report['tolerance']:g}" if report["first"] is None else beyond]
