"""The report of `minillm.routes` as text: a line for each layer, and one layer in detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm import cli
from minillm.guard.screen import printable

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 64  # of a bar; neighbours share a block where there are more experts
ORANGE, FAINT, PLAIN = "\x1b[33m", "\x1b[2m", "\x1b[0m"


def show(report: dict[str, Any], layer: int | None) -> None:
    """Print it; colour only on a terminal that may have it."""
    coloured = cli.colourful()
    print(
        printable(
            f"{report['weights']}: {report['tokens']:,} tokens of {', '.join(report['text'])}, "
            f"windows of {report['context']} every {report['stride']}, {report['dtype']}"
        )
    )
    print("layer  experts  effective  max/mean  unused  per token  top weight  margin p50  near ties  load")
    for each in report["layers"]:
        print(_row(each, coloured))
    print(
        f"load: each expert's share of the picks, █ is twice the mean or more; near tie: a margin < {report['tie']:g}"
    )
    grouped = [each for each in report["layers"] if each["groups"]]
    if grouped:
        print("\nlayer  groups  allowed  used per token  group margin p50  group load")
    for each in grouped:
        groups = each["groups"]
        margin = _number(groups["margin"] and groups["margin"]["p50"], 18, 4)
        bar = bars(groups["load"], coloured)
        print(
            f"{each['layer']:5}{groups['num_groups']:8}{groups['top_groups']:9}"
            f"{groups['used_per_token']:16.2f}{margin}  {bar}"
        )
    if report["drift"]:
        _drift(report["drift"])
    for each in report["layers"]:
        if each["layer"] == layer:
            _detail(each)


def _row(each: dict[str, Any], coloured: bool) -> str:
    margin = each["margin"]
    return (
        f"{each['layer']:5}{each['top_k']:4} of {each['num_experts']:<3}{each['effective_experts']:8.1f}"
        f"{each['max_over_mean']:10.2f}{len(each['never_used']):8}{each['token_entropy']:11.2f}"
        f"{each['top1_share']:12.2f}{_number(margin and margin['p50'], 12, 4)}"
        f"{_number(margin and 100 * margin['near_ties'], 9, 1)} %  {bars(each['load'], coloured)}"
    )


def bars(load: Sequence[float], coloured: bool) -> str:
    """A block for each expert, its height the share it has: half at the mean, full at twice that or more."""
    step = -(-len(load) // WIDTH)
    line, before = "", ""
    for at in range(0, len(load), step):
        some = load[at : at + step]
        ratio = sum(some) / len(some) * len(load)
        height = 0 if ratio == 0 else max(min(round(ratio * 4), 8), 1)
        colour = ORANGE if ratio >= 2 else FAINT if ratio < 0.5 else ""
        if coloured and colour != before:
            line += (PLAIN if before else "") + colour
            before = colour
        line += BLOCKS[height]
    return line + (PLAIN if before else "")


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'none':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _drift(drift: dict[str, Any]) -> None:
    print()
    print(printable(f"against {drift['against']}: {drift['tokens']:,} tokens, {drift['dtype']}"))
    runs = drift["kind"] == "run"
    titles = "  flipped  experts kept  margin if flipped  if kept  near ties flip  others flip" if runs else ""
    print(f"layer     divergence{titles}")
    for each in drift["layers"]:
        print(f"{each['layer']:5}{each['divergence_bits']:10.6f} bits{_flips(each) if runs else ''}")


def _flips(each: dict[str, Any]) -> str:
    return (
        f"{100 * each['flipped']:7.2f} %{100 * each['experts_kept']:12.2f} %"
        f"{_number(each['margin_of_flipped'], 19, 5)}{_number(each['margin_of_kept'], 9, 5)}"
        f"{_percent(each['flipped_of_near_ties']):>16}{_percent(each['flipped_of_others']):>13}"
    )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f} %"


def _detail(each: dict[str, Any]) -> None:
    print(f"\nlayer {each['layer']}: pairs by how much more often they go together than independence would give")
    for pair in each["pairs"]:
        (a, b), count = pair["experts"], pair["count"]
        print(f"  {a:3} and {b:<3} {count:8,} times for {pair['expected']:,.1f}, {pair['lift']:.2f} times as often")
    print(f"layer {each['layer']}: share of picks, of weights, and the tokens that an expert sees most for its share")
    for expert, tokens in enumerate(each["specialists"]):
        shares = f"{100 * each['load'][expert]:5.1f} % {100 * each['weighted_load'][expert]:5.1f} %"
        words = ", ".join(f"{token['token']!r} x {token['lift']:.1f}" for token in tokens)
        print(printable(f"  {expert:3}  {shares}  {words or 'no token'}"))
