"""A plan in words: lines for a terminal, and tables in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm import hub
from minillm.plan.fit import FORMATS, MAX_DEVICES, STORED
from minillm.report.words import parameters, runs, size
from minillm.weights.ints import METHOD

Report = Mapping[str, Any]

WIDTH, LABEL = 100, 14  # columns of a line, and those before the text
SHOWN = (1024, 8192, 32768, 131072)  # of all contexts in a report, besides the model's own
ROUND = (3, 7, 8, 13, 34, 70, 405)  # billions of parameters that models are called by
NO_ADVICE = "no legal advice: the licence itself counts"


def flops(count: float) -> str:
    """16111042560 -> "16.11 GFLOP", 2500000 -> "2.50 MFLOP"."""
    return f"{count / 1e9:,.2f} GFLOP" if count >= 1e8 else f"{count / 1e6:,.2f} MFLOP"


def lines(report: Report) -> list[str]:
    """What is printed of a checkpoint."""
    total, active = report["parameters"], report["active_parameters"]
    count = f"{total:,}" + (f", of which {active:,} active per token" if active < total else "")
    found = [f"{report['weights']}: {report['model_type']}, context {report['max_context']:,}"]
    for label, texts in {
        "parameters": [count],
        "checkpoint": _checkpoint(report["checkpoint"], report["quantization"]),
        "formats": [", ".join(f"{name} {size(each['file_bytes'])}" for name, each in report["formats"].items())],
        "KV cache": _cache(report),
        "tower": _tower(report),
        "picture": _picture(report["picture"]),
        "operations": [
            f"{flops(report['flops']['prefill_per_token'])} for each token of a prompt of {report['context']:,}, "
            f"{flops(report['flops']['decode_per_token'])} for one more behind it"
        ],
        "decode step": [
            f"reads {size(report['step_weight_bytes'])} of weights ({report['format']}) and "
            f"{size(report['step_cache_bytes'])} of cache"
        ],
        "speed": _speed(report),
        "ranks": _ranks(report["ranks"]),
        "fit": _fit(report),
        "splits": _splits(report["splits"]),
        "licence": _licence(report["licence"]),
    }.items():
        cut = texts if label == "splits" else [line for text in texts for line in _wrapped(text)]
        found += [f"{label if number == 0 else '':{LABEL}}{line}" for number, line in enumerate(cut)]
    return found


def _wrapped(text: str) -> list[str]:
    inner = "  " if text.startswith("- ") else ""
    return textwrap.wrap(text, WIDTH - LABEL, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)


def _checkpoint(made: Report, quantization: str | None) -> list[str]:
    stored = f"quantised with {quantization}, the rest in {made['dtype']}" if quantization else f"in {made['dtype']}"
    total = made["bytes"]
    found = ["size not known" if total is None else f"{size(total)}, {stored} ({total:,} bytes of tensors)"]
    found += [
        f"of which {size(each)} are no part of the decoder: {reason}" for reason, each in made["left_out"].items()
    ]
    if outside := made["outside"]:
        count, whole = outside["tensors"], size(outside["bytes"])
        found.append(f"of which {whole} are {count:,} tensors outside the decoder, by the {made['source']}")
    if made["difference_bytes"] is None:
        known = "as the headers of the files say" if made["source"] == "files" else ""
        known = known or "computed from config.json; no index or files here to check it against"
        checked = "" if total is None else known
    elif made["difference_bytes"] == 0:
        whose = "the index states" if made["source"] == "index" else "the headers of the files say"
        checked = f"to the byte what {whose}"
    else:
        stated, other = made["stated_bytes"], made["difference_bytes"]
        checked = f"the {made['source']} say {stated:,}, which is {other:+,} to what config.json gives"
    absent = made["absent_tensors"]
    missing = [f"{absent:,} tensors that config.json asks for are not in the {made['source']}"] if absent else []
    return [*found, *([checked] if checked else []), *missing, *made["notes"]]


def _cache(report: Report) -> list[str]:
    rows = f" for {report['batch']:,} sequences" if report["batch"] > 1 else ""
    by_context = report["kv_bytes_by_context"]
    shown = [each for each in by_context if int(each) in (*SHOWN, report["max_context"])]
    last, each = report["max_context"], report["kv_bytes_per_token"]
    state = report["state_bytes"]
    cut = by_context[str(last)] < (each * last + state) * report["batch"]
    return [
        f"{each:,} bytes per token in {report['dtype']}" + (", as long as every window sees it" if cut else ""),
        *([f"{size(state)} of states for a sequence, whatever its length, counted in below"] if state else []),
        ", ".join(f"{size(by_context[each])} at {int(each):,}" for each in shown) + rows,
        f"{size(report['kv_bytes'])} for a context of {report['context']:,} and a batch of {report['batch']:,}",
    ]


def _tower(report: Report) -> list[str]:
    if (made := report["tower"]) is None:
        return []
    counted = "; counted where it says what fits" if len(report["ranks"]) == 1 else "; not with --ranks"
    return [f"{parameters(made['parameters'])} parameters for {made['kind']}s, {size(made['bytes'])} in "
            f"{report['dtype']}, read with the first one{counted}"]  # fmt: skip


def _picture(made: Report | None) -> list[str]:
    if made is None:
        return []
    before, after, (columns, rows) = made["size"], made["brought_to"], made["patches"]
    breaks = f" and {made['breaks']:,} ends of rows" if made["breaks"] else ""
    return [
        f"{before[0]:,} x {before[1]:,} pixels are brought to {after[0]:,} x {after[1]:,}: {columns:,} x {rows:,} = "
        f"{columns * rows:,} patches, {made['tokens']:,} tokens{breaks}, {size(made['kv_bytes'])} of cache",
        f"{size(made['pixel_bytes'])} of pixels, {size(made['patch_bytes'])} of patches; in a layer of the tower "
        f"{size(made['attention_bytes'])} for attention, whose {size(made['scores_bytes'])} of scores are never there "
        f"together; {flops(made['flops'])}",
    ]


def _speed(report: Report) -> list[str]:
    if (found := report["speed"]) is None:
        return []
    if found["decode_tokens_per_second"] is None:
        return [f"not known for {report['device']['name']}: --gpu with a name of --devices tells"]
    prefill = found["prefill_tokens_per_second"]
    return [
        f"at most {found['decode_tokens_per_second']:,.0f} tok/s decode, by bandwidth; "
        + (f"{prefill:,.0f} tok/s prefill, by bf16 arithmetic" if prefill else "prefill not known"),
    ]


def _taken(rank: Mapping[str, int]) -> int:
    return rank["weight_bytes"] + rank["kv_bytes"]


def _ranks(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each holds, those that hold as much in one line."""
    alike: dict[str, list[int]] = {}
    for rank, each in enumerate(ranks):
        text = f"{size(each['weight_bytes'])} of weights and {size(each['kv_bytes'])} of cache"
        text += f", {count} whole experts of each mixture" if (count := each["whole_experts"]) is not None else ""
        alike.setdefault(text, []).append(rank)
    return [f"{runs(numbers)}: {text}" for text, numbers in alike.items()] if len(ranks) > 1 else []


def _fit(report: Report) -> list[str]:
    """Whether it fits, and otherwise what would, in the order of what costs least."""
    if (found := report["fit"]) is None:
        return []
    device, share, ranks = report["device"], f"{report['device']['usable_percent']} %", report["ranks"]
    most = max(ranks, key=_taken)
    what = f"{size(most['weight_bytes'])} of weights ({report['format']}) and {size(most['kv_bytes'])} of cache"
    count = f"{device['count']:,} x " if device["count"] > len(ranks) else ""
    room = f"{size(found['usable_bytes'])}, {share} of {count}{device['name']}"
    room += f" ({size(device['memory'])})" if device["bandwidth"] else ""
    split = ["weights and cache split evenly over all of them"] if count else []
    split += [f"of rank {ranks.index(most)}, none of the {len(ranks)} has more"] if len(ranks) > 1 else []
    context, batch = found["largest_context"], found["largest_batch"]
    split += _held(report)
    if found["fits"]:
        more = f"room for a context of up to {context:,} at this batch, or a batch of {batch:,} at this context"
        return [f"yes: {what} in {room}", more, *split]
    texts = [f"no: {what} do not go into {room}", *split, "what would make it fit:"]
    texts += [_way(report, name) for name in found["formats"]] or ["- no smaller format on its own"]
    if context:
        texts.append(f"- --context {context}" + (f", or --batch {batch} at this context" if batch else ""))
    else:
        texts.append("- no shorter context on its own: the weights are too large")
    if both := found["together"]:
        texts.append(f"{_way(report, both['format'])}, with --context {both['largest_context']}")
    if (more := found["devices_needed"]) is not None and more <= MAX_DEVICES:
        which = "--gpus" if len(ranks) == 1 else "--ranks"
        texts.append(f"- {which} {more}, each with its share of weights and cache")
    return texts


def _splits(found: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The ways over a cluster, the one to take first."""
    if not found:
        return [] if found is None else ["none: this model cannot lie evenly in these machines"]
    rows = [["ranks", "stages", "on each", "fits", "one row", "batch", "prompt"]]
    for each in found:
        rates = [each[f"{what}_tokens_per_second"] for what in ("one_row", "decode", "prefill")]
        speeds = ["-" if rate is None else f"{rate:,.0f} tok/s" for rate in rates]
        fits = "yes" if each["fits"] else "no"
        rows.append([str(each["ranks"]), str(each["stages"]), size(each["needed_bytes"]), fits, *speeds])
    return [*aligned(rows), "estimates by bytes and latencies, of all devices (docs/plan.md)"]


def _way(report: Report, name: str) -> str:
    """How to come by a format: `minillm.quantize` makes integers only."""
    weights = f"{size(report['formats'][name]['tensor_bytes'])} of weights"
    own = name in ("int8", "int4") and report["checkpoint"]["readable"] is not False
    if name == "bfloat16":
        return f"- --dtype bfloat16: {weights}"
    return f"- --quantize {name}: {weights}" if own else f"- a checkpoint in {name}: {weights}"


def _held(report: Report) -> list[str]:
    """What minillm itself makes of weights that are quantised as stored."""
    scheme = report["quantization"]
    if report["format"] != STORED or scheme in (None, METHOD):
        return []
    if not report["checkpoint"]["readable"]:
        return [f"for an engine that reads {scheme}: minillm does not"]
    plain = size(report["formats"]["bfloat16"]["tensor_bytes"])
    how = "as minillm holds it" if report["held_bytes"] else "if all matrices can stay as they are, which files tell"
    return [f"{how}: with --dequantize it makes {plain} of it, which --dtype {report['dtype']} asks about"]


def _licence(found: Report) -> list[str]:
    named = ", ".join(each for each in (found["id"], found["name"], found["link"]) if each)
    if found["title"] is None:
        return [f"{named}: {found['problem']}" if named else f"unknown: {found['problem']}"]
    return [f"{found['title']} ({named}); {NO_ADVICE}", *(f"- {each}" for each in found["asks"])]


def called(report: Report) -> str:
    """What a table calls a checkpoint."""
    path = Path(report["weights"])
    return hub.name_of(path.parent if path.suffix == ".json" else path)


def table(reports: Sequence[Report]) -> list[list[str]]:
    """Checkpoints side by side, the first row being the head."""
    head = ["checkpoint", "parameters", "active", "as stored", *FORMATS, "cache per token", "at its context of"]
    rows = [head]
    for report in reports:
        total, active = (parameters(report[key]) for key in ("parameters", "active_parameters"))
        stored, last = report["checkpoint_bytes"], str(report["max_context"])
        rows.append([
            called(report), total, active if active != total else "all",
            "not known" if stored is None else size(stored),
            *(size(report["formats"][name]["tensor_bytes"]) for name in FORMATS),
            size(report["kv_bytes_per_token"]), f"{size(report['kv_bytes_by_context'][last])} ({int(last):,})",
        ])  # fmt: skip
    return rows


def round_sizes() -> list[dict[str, Any]]:
    """Weights of the usual sizes at the plain number of bits: without the factors that a format adds."""
    return [{"parameters": n * 10**9, "bytes": {str(b): n * 10**9 * b // 8 for b in (16, 8, 4)}} for n in ROUND]


def round_table() -> list[list[str]]:
    rows = [["parameters", "16 bit", "8 bit", "4 bit"]]
    for each in round_sizes():
        rows.append([f"{each['parameters'] // 10**9} B", *(f"{n / 1e9:g} GB" for n in each["bytes"].values())])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{'<' if i == 0 else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
