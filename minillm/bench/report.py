"""From what the engines answered to figures: medians, shares of what the machine can do, ratios, and a table.

A decode step has to read the active weights and the cache of its rows: their bytes, times the steps per second, are a
share of the copy bandwidth. A prefill has to do the operations of `costs.prefill_flops`: a share of the matrix peak.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from minillm.model.costs import bytes_per_step, cached_values_seen, prefill_flops, state_bytes
from minillm.model.decoder import Decoder

Rounds = Sequence[Mapping[str, Any]]  # what `worker.timed` gives


class Point(NamedTuple):
    """`batch` rows, each with a prompt of so many tokens; `context` positions are in the cache when decoding starts,
    at least the prompt."""

    batch: int
    prompt: int
    context: int


class Limits(NamedTuple):
    """What the machine reaches at best, in bytes and in operations per second; None where it could not be measured."""

    copy: float | None
    matrix: float | None


def decode_seconds(rounds: Rounds) -> float:
    """The median of all steps."""
    return statistics.median(step for each in rounds for step in each["decode"])


def prefill_seconds(rounds: Rounds) -> float:
    return statistics.median(each["prefill"] for each in rounds)


def speeds(model: Decoder, point: Point, rounds: Rounds, facts: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Tokens per second of all rows together, and the shares. `model` may be on the meta device; of `facts` count
    `bytes_per_step`, the weights that one row's step reads, and `cache_bytes_per_value`."""
    steps_per_second, prefill = 1 / decode_seconds(rounds), prefill_seconds(rounds)
    # With experts several rows read more weights than one, in whatever form an engine holds them.
    weights = facts["bytes_per_step"] * bytes_per_step(model, point.batch) / bytes_per_step(model)
    behind = point.context + len(rounds[0]["decode"]) // 2  # on average
    width = facts["cache_bytes_per_value"]
    cache = (cached_values_seen(model.spec, behind) * width + state_bytes(model.spec, width)) * point.batch
    flops = prefill_flops(model, point.prompt) * point.batch
    return {
        "prefill_tok_s": point.batch * point.prompt / prefill,
        "decode_tok_s": point.batch * steps_per_second,
        "bandwidth_share": limits.copy and (weights + cache) * steps_per_second / limits.copy,
        "matrix_share": limits.matrix and flops / prefill / limits.matrix,
    }


def ratios(rounds: Mapping[str, Rounds], rows: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """For each peer how many times its speed minillm has, and of its load time and memory how much it takes.

    Of a speed the median over the rounds of the ratio within each round, whose parts lie close together in time, so
    that what else the machine does weighs on both sides alike.
    """
    for peer in list(rounds)[1:]:
        pairs = list(zip(rounds["minillm"], rounds[peer], strict=True))
        ours, theirs = rows["minillm"], rows[peer]
        known = ours["peak_rss_gb"] is not None and theirs["peak_rss_gb"] is not None
        yield {
            "against": peer,
            "decode": statistics.median(decode_seconds([b]) / decode_seconds([a]) for a, b in pairs),
            "prefill": statistics.median(b["prefill"] / a["prefill"] for a, b in pairs),
            "load": ours["load_s"] / theirs["load_s"],
            "peak_rss": ours["peak_rss_gb"] / theirs["peak_rss_gb"] if known else None,
        }


def table(report: Mapping[str, Any]) -> str:
    """In Markdown: each row, then each ratio."""
    case, speed = "shape, dtype, quantize, batch, prompt, context", "decode tok/s, of copy, prefill tok/s, of peak"
    lines = _lines(f"engine, {case}, {speed}, load s, peak GB", [
        [row["engine"], *_case(row), f"{row['decode_tok_s']:.1f}", _share(row["bandwidth_share"]),
         f"{row['prefill_tok_s']:.1f}", _share(row["matrix_share"]), f"{row['load_s']:.2f}",
         "" if row["peak_rss_gb"] is None else f"{row['peak_rss_gb']:.2f}"]
        for row in report["rows"]
    ])  # fmt: skip
    if report["ratios"]:
        lines += ["", *_lines(f"minillm over, {case}, decode, prefill, load, peak", [
            [ratio["against"], *_case(ratio), f"**{ratio['decode']:.2f}**", f"**{ratio['prefill']:.2f}**",
             f"{ratio['load']:.2f}", "" if ratio["peak_rss"] is None else f"{ratio['peak_rss']:.2f}"]
            for ratio in report["ratios"]
        ])]  # fmt: skip
    copy, matrix = report["copy_gb_s"], report["matrix_tflop_s"]
    copies = "" if copy is None else f", copies {copy:.1f} GB/s"
    multiplies = "" if matrix is None else f", multiplies at {matrix:.2f} TFLOP/s"
    return "\n".join([*lines, "", f"{report['device']}: {report['threads']} threads{copies}{multiplies}"])


def _case(row: Mapping[str, Any]) -> list[str]:
    return [str(row[key]) for key in ("shape", "dtype", "quantize", "batch", "prompt", "context")]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _lines(names: str, rows: list[list[str]]) -> list[str]:
    """Cells in columns of one width."""
    head = names.split(", ")
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in (head, ["-" * width for width in widths], *rows)
    ]
