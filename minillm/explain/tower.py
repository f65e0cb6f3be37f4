"""The tower in front of a decoder in words: from patches or frames over its layers and the projector to tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minillm.report.words import runs
from minillm.spec.media import Encoder, Media, Patches, Projector, Table

Line = Callable[[Any], str]


def lines(made: Media, count: int, layers: Sequence[Mapping[str, Any]], line: Line) -> list[str]:
    """One line for each room. `layers` are those of the tower as plain data, and `line` writes a part of one."""
    encoder = made.encoder
    found = [f"tower for {made.kind}s: {count:,} parameters, read with the first one", f"  {_first(encoder)}"]
    if encoder.table:
        found.append(f"  table               {_learned(encoder.table)}")
    if encoder.columns:
        first, other = ("column", "row") if encoder.columns == "first" else ("row", "column")
        rates = "at the rates between those of rows" if encoder.columns == "between" else "at the same rates"
        found.append(f"  rotated             half of a head's pairs by the {first}, half by the {other}, {rates}")
    if encoder.clipped:
        found.append("  clipped             what products are given and what they give, to stored bounds")
    alike: dict[tuple[str, str], list[int]] = {}
    for index, layer in enumerate(layers):
        alike.setdefault((str(layer), _reach(encoder, index)), []).append(index)
    for (made_of, reach), indices in alike.items():
        found.append(f"  layer{'s' if len(indices) > 1 else ''} {runs(indices)}: {reach}")
        if indices[0] == 0 or made_of != str(layers[0]):
            shown = ("attention_norm", "attention", "ffn")
            found += [f"    {part:18}{line(layers[indices[0]][part])}" for part in shown]
    found.append(f"  projector           {_projected(encoder.projector, encoder.hidden_size)}")
    if encoder.taps and encoder.tap_projector:
        taps = _projected(encoder.tap_projector, encoder.hidden_size)
        found.append(f"  taps                behind its layers {runs(sorted(encoder.taps))}: {taps}, added behind the "
                     f"first {len(encoder.taps)} layers of the decoder")  # fmt: skip
    return [*found, f"  tokens              {_tokens(made)}"]


def _first(encoder: Encoder) -> str:
    if not isinstance(made := encoder.embed, Patches):
        return (f"frames              {made.bands} mel bands of 3 frames -> {encoder.hidden_size}, then every other "
                f"one; {made.positions:,} learned positions")  # fmt: skip
    frames = f" in {made.frames} frames" if made.frames > 1 else ""
    return (
        f"patches             {made.side} x {made.side} pixels{frames}: {made.values:,} values -> {encoder.hidden_size}"
    )


def _learned(table: Table) -> str:
    side = f"{table.side:,}"
    if table.summed:
        return f"{side} learned rows for columns and {side} for rows, of which a patch has one of each, summed"
    how = "stretched to the grid of a picture" if table.stretched else "a row for each patch"
    return f"{side} x {side} learned positions, {how}"


def _reach(encoder: Encoder, index: int) -> str:
    if encoder.window is None or index in encoder.whole:
        return "all of it sees each other"
    side = encoder.window * getattr(encoder.embed, "merge", 1)
    return f"windows of {side} x {side} patches"


def _projected(made: Projector, size: int) -> str:
    wide = size * made.gathered if made.pool == "concat" else size
    how = "side by side" if made.pool == "concat" else "averaged"
    gathered = f"{made.gathered} neighbours {how}, " if made.gathered > 1 else ""
    widths = [wide, *((made.mixed,) if made.mixed else ()), *made.widths]
    return f"{gathered}{' -> '.join(f'{each:,}' for each in widths)}"


def _tokens(made: Media) -> str:
    between = f", {made.placeholder.between!r} between rows" if made.placeholder.between else ""
    axes = made.axes and [made.axes.count(axis) for axis in range(3)]
    turned = f"; of the decoder's pairs {axes[0]} rotate by time, {axes[1]} by row, {axes[2]} by column" if axes else ""
    joint = "; those of a picture see each other both ways" if made.joint else ""
    return f"{made.placeholder.token!r} for each{between}{turned}{joint}"


def of_picture(made: Media, cost: Mapping[str, Any]) -> list[str]:
    """The way of one picture, with the shapes that it has."""
    embed, size, count = made.encoder.embed, made.encoder.hidden_size, len(made.encoder.layers)
    assert isinstance(embed, Patches)
    columns, rows = cost["patches"]
    patches, (width, height), (wide, high) = columns * rows, cost["size"], cost["brought_to"]
    steps = [
        f"{width:,} x {height:,} pixels -> {wide:,} x {high:,}",
        f"{columns:,} x {rows:,} patches [{patches:,}, {embed.values:,}]",
        f"[{patches:,}, {size:,}] through {count} layers",
        f"{columns // embed.merge:,} x {rows // embed.merge:,} tokens "
        f"[{cost['tokens']:,}, {made.encoder.projector.widths[-1]:,}]",
    ]
    return [f"{cost['picture']}: {' -> '.join(steps)}"]
