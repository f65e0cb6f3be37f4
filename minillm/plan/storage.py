"""What a checkpoint's files hold, from its config alone: each tensor's type and shape, plain, quantised or left out.

The family's rules read backwards give the published names of the tensors that fill the decoder. A quantised matrix
lies as its scheme says (`plan/layouts.py`). Three kinds of tensors that no decoder uses have known shapes all the same:
the copy of a tied head, stored rotary frequencies, and layers of multi-token prediction. Any other, a vision tower say,
is only counted: what it takes is for the index or the files to tell.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minillm import config, families
from minillm.guard.jsonfile import read_json
from minillm.model import held
from minillm.model.decoder import Decoder
from minillm.model.outline import Outline
from minillm.plan.layouts import METHODS, Entries, Section, Shape
from minillm.weights import ints
from minillm.weights.ints import METHOD
from minillm.weights.rules import Destination, Plan, Rules
from minillm.weights.save import published
from minillm.weights.tensorfile import BITS, NAMES

WORDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
HEAD, HEADS = "lm_head.weight", ("lm_head.weight", "embed_out.weight")
# Letters of a file's header: around all of it, and of a tensor's entry besides name, type, shape and offsets.
HEADER = len('{"__metadata__":{"format":"pt"}}')
ENTRY = len(',"":{"dtype":"","shape":,"data_offsets":[,]}')
STEMS = ("model.safetensors", "pytorch_model.bin")
FREQUENCIES = "rotary_emb.inv_freq"
TIED, ROTARY, PREDICTION = "copy of the tied head", "rotary frequencies", "multi-token prediction"
MAX_PATTERNS = 1000  # each is tried on each tensor
# What a config calls the list of plain modules.
SPARED = ("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules", "ignore", "exclude_modules")


class Sizes(NamedTuple):
    """Bytes of a decoder's tensors by the parameter of its outline that they fill, of all of them, and of the one file
    that would hold them: its header is computed as if all offsets in it had as many digits as the last."""

    parameters: dict[str, int]
    total: int
    file: int


class Stored(NamedTuple):
    """What a checkpoint holds: the decoder; bytes of the tensors left out, by the reason; tensors that are there of
    which no more than a name is known, and names that should be there and are not."""

    decoder: Sizes
    left_out: dict[str, int]
    outside: list[str]
    absent: list[str]


def nbytes(entries: Entries) -> int:
    return sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in entries.values())


def stated_bytes(folder: Path) -> int | None:
    """What the index of a folder says all of its tensors take; None where it does not say."""
    found = next((folder / f"{stem}.index.json" for stem in STEMS if (folder / f"{stem}.index.json").is_file()), None)
    metadata = read_json(found).get("metadata") if found else None
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(size) if isinstance(size, (int, float)) and not isinstance(size, bool) and 0 < size < 2**63 else None


def names(rules: Rules, model: Decoder, planned: Plan | None, section: Section | None) -> dict[str, Destination]:
    """The tensors that fill the model by their plain names: those of a folder, where they fill all of it, else what the
    rules call them. `planned` is the folder's plan."""
    destinations, method = model.destinations(), _method(section)
    if planned is not None and not planned.unfilled:
        found = planned.assignments
    else:
        # Where a family has a tensor both plain and in blocks, the scheme says which it is.
        blocks = {rule for rule in rules if rule.endswith("_blocks")}
        other = {rule.removesuffix("_blocks") for rule in blocks} if method == "mxfp4" else blocks
        found = published({rule: to for rule, to in rules.items() if rule not in other}, destinations)
    return {name.removesuffix("_blocks"): to for name, to in found.items()}


def lay_out(
    named: Mapping[str, Destination], model: Decoder, dtype: str, section: Section | None
) -> dict[str, Entries]:
    """What a checkpoint in `dtype` ("BF16"), quantised as a config's section says, has for each plain tensor.

    Raises ValueError for a scheme whose layout is not known.
    """
    method, formats = _method(section), dict[str, Any]()
    if method == METHOD:
        scheme = ints.read(section or {})
        assert scheme is not None
        formats = dict(held.integers(model, scheme))
    elif section and method not in METHODS:
        raise ValueError(f"how {method[:40]} lays tensors out is not known")
    chosen, spared = _matrices(model) if method in METHODS else set(), _spared(section or {})
    found: dict[str, Entries] = {}
    for name, to in named.items():
        if to.parameter in formats:
            parts = formats[to.parameter].parts(to.shape).items()
            found[name] = {f"{name}{ending}": (NAMES[kind], shape) for ending, (shape, kind) in parts}
        elif section and to.parameter in chosen and not spared(name):
            found[name] = METHODS[method](name, to.stored_shape, {**section, "dtype": dtype})
        else:
            # The correction of a router's scores is published in fp32 whatever the rest is in, its table in integers.
            own = {"bias": "F32", "table": "I64"} if ".router." in to.parameter else {}
            found[name] = {name: (own.get(to.parameter.rpartition(".")[2], dtype), to.stored_shape)}
    return found


def sizes(named: Mapping[str, Destination], sketch: Outline, dtype: str, section: Section | None) -> Sizes:
    """Of `lay_out`, without going through all of a layer's hundreds of experts: those alike are laid out once, and so
    are equal layers."""
    alike: dict[tuple[str, Shape, bool], list[str]] = {}
    spared = _spared(section or {})
    for name, to in named.items():
        alike.setdefault((to.parameter, to.shape, spared(name)), []).append(name)
    piles = {each[0]: each for each in alike.values()}
    laid = lay_out({name: named[name] for name in piles}, sketch.model, dtype, section)
    found: dict[str, int] = {}
    for name, entries in laid.items():
        found[named[name].parameter] = found.get(named[name].parameter, 0) + len(piles[name]) * nbytes(entries)
    total, header = sketch.total(found), HEADER
    digits = 2 * len(str(total))
    for name, entries in laid.items():
        letters, parameter = sum(map(len, piles[name])) - len(piles[name]) * len(name), named[name].parameter
        times, digits_more = sketch.times(parameter), len(piles[name]) * sketch.digits(parameter)
        for key, (kind, shape) in entries.items():
            text = len(key) + len(kind) + len(json.dumps(shape, separators=(",", ":"))) + digits + ENTRY
            header += times * (len(piles[name]) * text + letters) + digits_more
    return Sizes(found, total, total + 8 + header + -header % 8)


def stored(
    values: Mapping[str, Any],
    named: Mapping[str, Destination],
    sketch: Outline,
    dtype: str,
    present: Collection[str] | None,
) -> Stored:
    """What the checkpoint of a config holds. `present` has the names that an index or the files give: with them it is
    known which of the tensors that can be left out are there; without, a config's word counts."""
    section, spec = section_of(values), sketch.spec
    decoder, given = sizes(named, sketch, dtype, section), set(present or ())
    known = set[str]()
    if present is not None:
        known = {key for entries in lay_out(named, sketch.model, dtype, section).values() for key in entries}
    frequencies = {name for name in given if name.endswith(FREQUENCIES)}
    turned = next((each.dim for each in spec.ropes), 0)
    of_one = nbytes({"": ("F32", (turned // 2,))})
    size, extra = _prediction(values, decoder, known, sketch.last, dtype)
    left = {
        TIED: (
            nbytes({HEAD: (dtype, (spec.vocab_size, spec.hidden_size))}),
            {name for name in given if name.endswith(HEADS)} if spec.tied else set(),
        ),
        ROTARY: (len(frequencies) * of_one, frequencies),
        PREDICTION: (size, extra if present is None or extra & given else set()),
    }
    explained = known.union(*(names for _, names in left.values()))
    return Stored(
        decoder=decoder,
        left_out={reason: size for reason, (size, names) in left.items() if names},
        outside=[name for name in present or () if name not in explained],
        absent=[] if present is None else sorted(explained - given),
    )


def _prediction(
    values: Mapping[str, Any], decoder: Sizes, known: Collection[str], last: int, dtype: str
) -> tuple[int, set[str]]:
    """Bytes and names of the layers of multi-token prediction: each has what the last of the decoder has, whose names
    are among the `known`, and plain tensors of its own."""
    found, size = set[str](), 0
    whole = sum(each for name, each in decoder.parameters.items() if name.startswith(f"layers.{last}."))
    inner = f"model.layers.{last}."
    for layer, own in families.prediction_layers(values).items():
        found |= {layer + name for name in own}
        found |= {layer + name.removeprefix(inner) for name in known if name.startswith(inner)}
        size += whole + nbytes({name: (dtype, shape) for name, shape in own.items()})
    return size, found


def section_of(values: Mapping[str, Any]) -> Section | None:
    """What a config says of its quantisation; None if it is not quantised."""
    section = values.get("quantization_config") or None
    if section is None or not isinstance(section, dict):
        return section if section is None else {"quant_method": str(section)}
    own = values.get("expert_dtype")  # which may stand beside it
    return section if own is None else {"expert_dtype": own, **section}


def _method(section: Section | None) -> str:
    """The scheme of a config's section; "" for none."""
    return config.quantization({"quantization_config": section}) or ""


def _matrices(model: Decoder) -> set[str]:
    """The parameters that published schemes quantise: all that a product takes, but embedding, head and routers; and
    the one of latent attention that is dequantised here, as the absorbed form takes it apart."""
    found = {name for name, shape in held.holdable(model).items() if len(shape) > 1}
    found |= {name for name, _ in model.named_parameters() if name.endswith(".attention.kv_up")}
    return {name for name in found if not name.startswith(("embedding.", "head."))}


def _patterns(listed: str) -> Iterator[str]:
    """An entry of such a list; a simple regular expression ("re:.*gate$") as a pattern, "re:.*(up|down)_proj$" as one
    for each choice."""
    if not listed.startswith("re:"):
        yield listed
    elif listed.count("(") < 4 and (choice := re.search(r"\((\w+(?:\|\w+)*)\)(?![?*+{])", listed)):
        for each in choice[1].split("|"):
            yield from _patterns(f"{listed[: choice.start()]}{each}{listed[choice.end() :]}")
    else:
        found = listed.removeprefix("re:").removeprefix("^").replace("\\.", "\0").replace(".*", "*").replace(".", "?")
        found = found.removesuffix("$") if found.endswith("$") else f"{found}*"
        if set(found) & set("\\[](){}|+^$"):
            raise ValueError(f"which of its tensors are plain is not known: {listed[:60]!r} says so")
        yield found.replace("\0", ".")


def lists_modules(section: Section) -> bool:
    """Whether a config names modules one by one."""
    return any(section.get(key) for key in SPARED)


def _spared(section: Section) -> Callable[[str], bool]:
    """Whether a config's list leaves a tensor plain: it names its module, one around it, or the end, or a pattern."""
    lists = [section.get(key) for key in SPARED]
    entries = itertools.chain.from_iterable(each for each in lists if isinstance(each, list))
    listed = set(itertools.chain.from_iterable(_patterns(str(each)) for each in entries))
    patterns = [each for each in listed if "*" in each]
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"which of its tensors are plain is not known: {len(patterns)} patterns say so")

    # One expression, as a folder has up to a hundred thousand names.
    matched = re.compile("|".join(fnmatch.translate(f"{each}.*") for each in patterns) or r"(?!)").match

    def is_spared(name: str) -> bool:
        parts = name.split(".")[:-1]
        around = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        ends = {".".join(parts[count:]) for count in range(len(parts))}
        return bool(listed & (around | ends)) or matched(name) is not None

    return is_spared if listed else lambda name: False
