"""What `lens` shows, as text: with colours on a terminal, and as readable without any."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minillm.text.pieces import visible

Report = Mapping[str, Any]

SECTIONS = ("distribution", "lens", "attention", "norms", "sampling")
SURPRISALS = (0.5, 1.0, 2.0, 4.0, 8.0)  # nats: where the next colour begins
BACKGROUNDS = (231, 195, 153, 111, 75, 33)  # of the terminal's 256 colours: white to blue, legible under black
SHADES = " ░▒▓█"  # of an attention weight: to 0.05, 0.2, 0.4, 0.7, 1
LIMITS = (0.05, 0.2, 0.4, 0.7)
CELL = 11  # columns of a cell of the lens
MANY_HEADS = 64  # of all layers: so many have a line each among the other sections


def lines(
    report: Report, show: str | None, weights: Sequence[Sequence[float]] | None, colour: bool, width: int = 0
) -> Iterator[str]:
    """The lines of one section, or of all; with `weights` `[query][key]` those of an attention map instead."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    if weights is not None:
        yield from attention_map(report, weights, width)
        return
    count = sum(map(len, report["heads"]["entropy"]))
    sections = {
        "distribution": lambda: distribution(report, colour),
        "lens": lambda: lens(report, width),
        "attention": lambda: heads(report) if show or count <= MANY_HEADS else layers_of_heads(report),
        "norms": lambda: norms(report, width),
        "sampling": lambda: sampling(report),
    }
    wanted = [show] if show else [name for name in SECTIONS if name != "sampling" or "sampling" in report]
    yield f"{visible(report['weights'])}: {len(report['tokens'])} tokens, {report['dtype']}; information in nats"
    for name in wanted:
        yield ""
        yield from sections[name]()


def name_of(report: Report, token: int) -> str:
    """A token's text as it can be seen."""
    return visible(report["texts"][str(token)])


def names(report: Report) -> list[str]:
    """The prompt's tokens."""
    return [name_of(report, token) for token in report["tokens"]]


def columns(text: str) -> int:
    """How many columns of a terminal it takes: two for a wide character, none for what is written over another."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, width: int) -> str:
    """Text of exactly so many columns."""
    if columns(text) > width:
        while columns(text) >= width:
            text = text[:-1]
        text += "…"
    return text + " " * (width - columns(text))


def distribution(report: Report, colour: bool) -> Iterator[str]:
    """The prompt in the colours of its surprisal, then a line for each position."""
    if colour:
        surprisals = [None, *report["following"]["nats"]]
        yield "".join(map(_painted, names(report), surprisals))
        scale = [f"from {limit:g}" for limit in SURPRISALS]
        yield "surprisal: " + " ".join(
            f"\x1b[30;48;5;{code}m{text}\x1b[0m" for code, text in zip(BACKGROUNDS, ["low", *scale], strict=True)
        )
        yield ""
    own = [(None, None), *zip(report["following"]["probability"], report["following"]["rank"], strict=True)]
    shown = report["distribution"]
    yield f"{'at':>4} {'token':14} {'its p':>7} {'rank':>6} {'entropy':>8}  likeliest next"
    for at, (name, (chance, rank)) in enumerate(zip(names(report), own, strict=True)):
        best = zip(shown["ids"][at], shown["probabilities"][at], strict=True)
        likeliest = "  ".join(f"{name_of(report, token)} {p:.3f}" for token, p in best)
        before = f"{'':>7} {'':>6}" if chance is None else f"{chance:7.4f} {rank:6}"
        yield f"{at:4} {_fit(name, 14)} {before} {shown['entropy'][at]:8.3f}  {likeliest}"


def _painted(name: str, surprisal: float | None) -> str:
    if surprisal is None:
        return name
    return f"\x1b[30;48;5;{BACKGROUNDS[sum(surprisal >= limit for limit in SURPRISALS)]}m{name}\x1b[0m"


def _last(report: Report, width: int, each: int) -> range:
    """The last positions that fit, `each` so wide, beside ten columns of labels."""
    count = len(report["tokens"])
    return range(count - min(count, max((width - 10) // each, 1)), count)


def _which(report: Report, shown: range) -> str:
    count = len(report["tokens"])
    return "" if len(shown) == count else f"; the last {len(shown)} of {count} positions, as many as fit"


def lens(report: Report, width: int) -> Iterator[str]:
    """The likeliest token behind each layer, the last layer on top, and how the last position comes to its answer."""
    found, shown = report["lens"], _last(report, width, CELL)
    yield f"logit lens: likeliest token behind each layer, and its chance in percent{_which(report, shown)}"
    yield f"{'':10}" + "".join(_fit(names(report)[at], CELL - 1) + " " for at in shown)
    for level in reversed(range(len(found["ids"]))):
        cells = (
            f"{_fit(name_of(report, found['ids'][level][at]), CELL - 5)}{100 * found['probability'][level][at]:4.0f} "
            for at in shown
        )
        yield f"{level_name(level):10}" + "".join(cells)
    yield ""
    answer = name_of(report, found["ids"][-1][-1])
    yield f"last position: {'entropy':>8} {'KL':>10}  rank of {answer}"
    for level in reversed(range(len(found["ids"]))):
        entropy, kl, rank = (found[key][level][-1] for key in ("entropy", "kl", "rank"))
        yield f"{level_name(level):14} {entropy:8.3f} {kl:10.3f}  {rank}"


def level_name(level: int) -> str:
    """What stands before the residual stream: 0 is the embedding, 1 the first layer, which is called layer 0."""
    return "embedding" if level == 0 else f"layer {level - 1}"


def heads(report: Report) -> Iterator[str]:
    """A line for each head: means over the prompt's positions."""
    found = report["heads"]
    sinks = any(map(any, found["sink"]))
    yield "heads: entropy of the weights, how many positions back they lie, share on the first token" + (
        " and on the sink" if sinks else ""
    )
    yield f"{'layer':>5} {'head':>4} {'entropy':>8} {'distance':>9} {'first':>6}" + (f" {'sink':>6}" if sinks else "")
    for layer, own in enumerate(found["entropy"]):
        for head in range(len(own)):
            entropy, distance, first, sink = (found[key][layer][head] for key in found)
            yield f"{layer:5} {head:4} {entropy:8.3f} {distance:9.2f} {first:6.2f}" + (f" {sink:6.2f}" if sinks else "")


def layers_of_heads(report: Report) -> Iterator[str]:
    """A line for each layer, where one for each head would fill screens: the least, the most, and whose they are."""
    found = report["heads"]
    kinds = [kind for kind in found if kind != "sink" or any(map(any, found["sink"]))]
    yield "heads: the least and the most of a layer, and in brackets whose; --show attention has a line for each head"
    yield f"{'layer':>5}  " + "".join(f"{kind:24}" for kind in kinds).rstrip()
    for layer in range(len(found["entropy"])):
        if not found["entropy"][layer]:
            continue
        cells = []
        for values in (found[kind][layer] for kind in kinds):
            least, most = (pick(range(len(values)), key=values.__getitem__) for pick in (min, max))
            cells.append(f"{values[least]:.2f} ({least}) to {values[most]:.2f} ({most})")
        yield f"{layer:5}  " + "".join(f"{cell:24}" for cell in cells).rstrip()


def norms(report: Report, width: int) -> Iterator[str]:
    """Lengths of the residual stream and of what is added, layer by layer."""
    found, shown = report["norms"], _last(report, width, 22)
    yield f"norms: the residual stream +attention +ffn{_which(report, shown)}"
    yield f"{'':10}" + "".join(_fit(names(report)[at], 21) + " " for at in shown)
    for level in reversed(range(len(found["residual"]))):
        cells = []
        for at in shown:
            parts = [f"+{found[part][level - 1][at]:.3g}" for part in ("attention", "ffn")] if level else []
            cells.append(_fit(" ".join([f"{found['residual'][level][at]:.3g}", *parts]), 21))
        yield f"{level_name(level):10}" + " ".join(cells)


def attention_map(report: Report, weights: Sequence[Sequence[float]], width: int) -> Iterator[str]:
    """A row for each query, two characters for each key, darker for more."""
    shown = _last(report, width - 10, 2)
    scale = ", ".join(f"{shade * 2!r} to {limit:g}" for shade, limit in zip(SHADES, (*LIMITS, 1.0), strict=True))
    yield f"rows look at columns: {scale}{_which(report, shown)}"
    for at in shown:
        cells = (SHADES[sum(weights[at][key] > limit for limit in LIMITS)] * 2 for key in shown)
        yield f"{at:4} {_fit(names(report)[at], 13)} " + "".join(cells).rstrip()


def sampling(report: Report) -> Iterator[str]:
    """What each cut keeps of the last distribution."""
    found = report["sampling"]
    yield f"sampling after the last token: {'kept':>8} {'of the mass':>12} {'entropy':>8}"
    for step in found["steps"]:
        yield f"  {step['name']:28} {step['kept']:8} {step['mass']:12.4f} {step['entropy']:8.3f}"
    yield f"{'':16}" + "".join(f"{step['name']:>18}" for step in found["steps"])
    for rank, token in enumerate(found["ids"]):
        chances = (step["probabilities"][rank] for step in found["steps"])
        yield f"  {_fit(name_of(report, token), 14)}" + "".join(f"{p:18.4f}" if p else f"{'-':>18}" for p in chances)
