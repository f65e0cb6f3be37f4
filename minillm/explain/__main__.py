"""What a checkpoint is, without reading its weights:

    python -m minillm.explain --weights DIR | --config FILE [--ranks N] [--image FILE | WxH] [--json]
    python -m minillm.explain --table DIR DIR ...  [--json]

Works from config.json, and from the safetensors headers or the index where they exist. The text leaves out what is as
in Llama: fields at their defaults. Of a model that sees or hears it has the tower too, and with --image the way of one
picture through it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minillm import cli, hub
from minillm import spec as vocabulary
from minillm.explain import tower
from minillm.explain.equations import equations
from minillm.families.media import media
from minillm.guard.screen import printable
from minillm.model.outline import outline
from minillm.parallel.split import check, local
from minillm.report import seeing
from minillm.report.examine import counts, describe, examine, explain
from minillm.report.words import parameters, runs, size
from minillm.spec import Decoder, MoE
from minillm.weights.rules import Plan


def _fillings(planned: Plan) -> list[str]:
    """Which tensor fills which rows of which parameter, and how its values lie where that is otherwise."""
    width = max(map(len, planned.assignments), default=0)
    return [
        f"{name:{width}}  {to.parameter}[{to.start}:{to.start + to.shape[0]}]"
        + (f"  {to.layout.stored} -> {to.layout.rows}" if to.layout else "")
        for name, to in planned.assignments.items()
    ]


def _print(report: dict[str, Any], lines: Sequence[Sequence[str]] = ()) -> None:
    """The report, with the given lines behind each layer."""
    spec = report["spec"]
    stored = f"stored as {report['dtype'] or 'its tensors say'}" + (
        f", quantised: {report['quantization']}" if report["quantization"] else ""
    )
    total, active = report["parameter_count"], report["active_parameter_count"]
    count = f"{total:,} parameters" + (f", {active:,} active per token" if active < total else "")
    print(printable(f"{report['weights']}: {report['model_type']}, {count}, {stored}"))
    head = "head tied to the embedding" if spec["tied"] else "own head"
    if report["head_to_compare"]:
        head += printable(f" unless {report['head_to_compare']} differs from it, which a load compares")
    print(f"vocabulary {spec['vocab_size']}, hidden size {spec['hidden_size']}, context {spec['context']}, {head}")
    cached = report["cached_values_per_token"]
    print(f"a token takes {cached:,} values in the cache, {cached * 2 / 1000:,.1f} kB in bfloat16")
    if state := report["state_bytes"]:
        print(f"a sequence takes {size(state)} besides, whatever its length, for the states of recurrent layers")
    for layer, indices in _alike(spec["layers"]):
        print(f"layer{'s' if len(indices) > 1 else ''} {runs(indices)}:")
        for part, value in layer.items():
            if part != "kind" and value != DEFAULTS.get(part):
                print(f"  {part:20}{_line(value)}")
        for each in lines[indices[0]] if lines else ():
            print(f"      {each}")
    for part in ("final_norm", "head_bias", "embedding", "logit_scale", "logit_softcap", "per_layer", "streams"):
        if spec[part] not in (None, False, 1.0) and _line(spec[part]) != "Embedding()":
            print(f"{part.replace('_', ' '):22}{_line(spec[part])}")
    for key in (
        "unknown_config_keys",
        "unclaimed_tensors",
        "unfilled_parameters",
        "misshapen_tensors",
        "other_faults",
        "dropped_tensors",
    ):
        names = report[key]
        label = key.replace("_", " ")
        if names is None:
            print(f"{label}: not known, this folder has no weights to look at")
        else:
            print(
                f"{label}: {len(names)}"
                + (printable(f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})") if names else "")
            )


def _alike(layers: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[int]]]:
    """The different layers, and which ones are so."""
    found: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for index, layer in enumerate(layers):
        found.setdefault(json.dumps(layer), (layer, []))[1].append(index)
    return list(found.values())


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    defaults = {field.name: field.default for field in dataclasses.fields(getattr(vocabulary, value["kind"]))}
    shown = {key: _line(each) for key, each in value.items() if key != "kind" and each != defaults[key]}
    fields = [f"{key}={each}" for key, each in shown.items() if each != f"{type(defaults[key]).__name__}()"]
    return f"{value['kind']}({', '.join(fields)})"


def of_ranks(report: dict[str, Any], spec: Decoder, count: int) -> list[tuple[dict[str, Any], Decoder]]:
    """The report and the spec of each share of a model over `count` ranks that differs from the others in more than
    which rows of the vocabulary and which experts it has; `ranks` has whose it is."""
    alike: dict[Decoder, list[int]] = {}
    check(spec, count)
    for rank in range(count):
        alike.setdefault(_anywhere(local(spec, count, rank), spec), []).append(rank)
    found = []
    for ranks in alike.values():
        made = local(spec, count, ranks[0])
        own = {"ranks": ranks, **counts(outline(made, torch.bfloat16)), "spec": describe(made)}
        found.append((report | own, made))
    return found


def _anywhere(made: Decoder, whole: Decoder) -> Decoder:
    """A share without what says where it lies in the whole."""
    layers = []
    for layer in made.layers:
        if isinstance(layer.ffn, MoE) and layer.ffn.own is not None:
            first, end = layer.ffn.own
            layer = replace(layer, ffn=replace(layer.ffn, own=(0, end - first)))
        layers.append(layer)
    return replace(made, embedding=whole.embedding, layers=tuple(layers))


def _tower(place: Path, values: dict[str, Any], image: str | None) -> dict[str, Any]:
    """What sees or hears, and what a picture becomes, null where there is none."""
    seen = seeing.described(values, torch.bfloat16)
    made = seeing.picture(place, values, image, torch.bfloat16) if image is not None else None
    found = media(values) if seen else None
    return {"tower": {**seen, "spec": describe(found[0])} if seen and found else None, "picture": made}


def _lines_of_tower(values: dict[str, Any], report: dict[str, Any]) -> list[str]:
    if (seen := report["tower"]) is None or (found := media(values)) is None:
        return []
    made = tower.lines(found[0], seen["parameters"], seen["spec"]["encoder"]["layers"], _line)
    return made + (tower.of_picture(found[0], report["picture"]) if report["picture"] else [])


DEFAULTS = {field.name: field.default for field in dataclasses.fields(vocabulary.Layer)}
COLUMNS = "checkpoint, family, parameters, active, layers, hidden, attention, feed-forward, context, cache".split(", ")


def row(report: dict[str, Any]) -> list[str]:
    """What a table says of a checkpoint: sizes, and bytes of bf16 cache per token."""
    spec = report["spec"]
    total, active = (parameters(report[key]) for key in ("parameter_count", "active_parameter_count"))
    return [
        hub.name_of(Path(report["weights"])),
        report["model_type"],
        total,
        active if active != total else "all",
        str(len(spec["layers"])),
        str(spec["hidden_size"]),
        _kinds(layer["attention"] for layer in spec["layers"]),
        _kinds(layer["ffn"] for layer in spec["layers"]),
        str(spec["context"]),
        f"{report['cached_values_per_token'] * 2 / 1000:.1f} kB",
    ]


def _kinds(parts: Iterable[dict[str, Any]]) -> str:
    """The different attentions or feed-forwards of a model and how many layers have each."""
    words = collections.Counter(WORDS[part["kind"]](part) for part in parts if part is not None)
    return words.most_common(1)[0][0] if len(words) == 1 else ", ".join(f"{n} x {word}" for word, n in words.items())


def _chosen(indexer: Any) -> str:
    """Which keys are seen, if this layer's indexer, or that of another layer, chooses some."""
    if indexer is None or isinstance(indexer, int):
        return "" if indexer is None else ", keys that another layer chose"
    return f", {indexer['top_k']} " + (f"blocks of {indexer['size']} keys" if "size" in indexer else "keys") + " chosen"


WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "GQA": lambda a: (
        f"{a['num_heads']} heads of {a['head_dim']} over {a['num_kv_heads']}"
        + (f", window {a['window']}" if a["window"] else "")
        + (", keys of others" if a["kv"]["layer"] is not None else "")
        + _chosen(a["kv"]["indexer"])
    ),
    "MLA": lambda a: (
        f"{a['num_heads']} heads over a latent of {a['kv_rank']} + {a['rope']['dim']}" + _chosen(a["indexer"])
    ),
    "Compressed": lambda a: (
        f"{a['num_heads']} heads over one of {a['head_dim']}, window {a['window']}"
        + (f" and entries of {a['entries']['span']}" if a["entries"] else "")
    ),
    "GatedDeltaNet": lambda a: f"{a['num_v_heads']} states of {a['k_dim']} x {a['v_dim']}",
    "ChannelDelta": lambda a: f"{a['num_heads']} states of {a['head_dim']} x {a['head_dim']} by channel",
    "GatedConv": lambda a: f"convolution over {a['conv_kernel']}",
    "StateSpace": lambda a: f"{a['num_heads']} states of {a['state_size']} x {a['head_dim']}",
    "SelectiveScan": lambda a: f"{a['channels']} channels of {a['state_size']} states",
    "GatedRecurrence": lambda a: f"{a['num_blocks']} recurrences of {a['block_size']}",
    "Beside": lambda a: " beside ".join(WORDS[a[part]["kind"]](a[part]) for part in ("attention", "recurrent")),
    "Fronted": lambda a: (
        f"{WORDS['GQA'](a['block']['attention'])} in a shared block, then {WORDS['StateSpace'](a['recurrent'])}"
    ),
    "GatedMLP": lambda f: f"gated {f['activation']} {f['intermediate_size']}",
    "MLP": lambda f: f"{f['activation']} {f['intermediate_size']}",
    "MoE": lambda f: f"{f['router']['top_k']} of {f['router']['num_experts']} experts of {f['intermediate_size']}",
}


def _print_table(reports: list[dict[str, Any]]) -> None:
    """In Markdown."""
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *map(row, reports)):
        print(printable(f"| {' | '.join(cells)} |"))


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("explain", "Say what a checkpoint is, without reading its weights.")
    source = cli.add_source(parser)
    source.add_argument("--table", metavar="PATH", nargs="+", help="several checkpoints side by side, in Markdown")
    parser.add_argument("--equations", action="store_true", help="what each layer computes, with this model's numbers")
    parser.add_argument("--tensors", action="store_true", help="which tensor fills which rows of which parameter")
    ranks = "the model that each of N processes has, which differ only in their shares"
    parser.add_argument("--ranks", metavar="N", type=int, help=ranks)
    parser.add_argument("--image", metavar="FILE | WxH", help=seeing.IMAGE)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; a list with --table")
    arguments = parser.parse_args(argv)
    if (arguments.equations or arguments.tensors) and (arguments.json or arguments.table):
        raise ValueError("--equations and --tensors go with neither --json nor --table")
    if arguments.ranks is not None and (arguments.tensors or arguments.table):
        raise ValueError("--ranks goes with neither --tensors nor --table")
    if arguments.image is not None and arguments.table:
        raise ValueError("--image goes with one checkpoint, not with --table")
    revision = cli.revision(arguments)
    if arguments.config:
        places = [cli.config_file(arguments.config)]
    else:
        places = [hub.resolve(each, False, revision=revision) for each in arguments.table or [arguments.weights]]
    if arguments.table:
        reports = [explain(place) for place in places]
        print(json.dumps(reports, ensure_ascii=False)) if arguments.json else _print_table(reports)
        return 0
    report, spec, planned, values, *_ = examine(places[0])
    report |= _tower(places[0], values, arguments.image)
    if arguments.tensors and planned is None:
        raise ValueError(f"{places[0]}: --tensors needs the weights or their index, and there are none")
    shares = of_ranks(report, spec, arguments.ranks) if arguments.ranks is not None else [(report, spec)]
    if arguments.json:
        found = [each for each, _ in shares] if arguments.ranks is not None else report
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for each, made in shares:
        if arguments.ranks:
            print(f"rank{'s' if len(each['ranks']) > 1 else ''} {runs(each['ranks'])} of {arguments.ranks}")
        layers = made.layers if arguments.equations else ()
        _print(each, [equations(layer, made) for layer in layers])
    for line in _lines_of_tower(values, report):
        print(printable(line))
    for line in _fillings(planned) if arguments.tensors and planned else ():
        print(printable(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
