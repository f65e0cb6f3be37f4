"""From a file to what a run goes through: examples in rows, and a share of them held out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from minillm.llm import LLM
from minillm.spec import Entries, Recurrent
from minillm.tune import data
from minillm.tune.data import Record
from minillm.tune.masking import Example, Masking, Pair
from minillm.tune.packing import rows_of
from minillm.tune.training import Pairs, Rows, Sequences

T = TypeVar("T")
MAX_LENGTH = 4096  # tokens of a row, where nobody asks for another number


@dataclass(frozen=True)
class Asked:
    """How data is to be read. `share` of it is held out, or all of another file."""

    file: Path
    evaluation: Path | None = None
    share: float = 0.0
    most: int = MAX_LENGTH
    truncate: bool = False
    pack: bool = False
    preferences: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """Rows, what is held out of them, and what to tell: the format, the tokens and those of them that are learnt, the
    longest row, how often the rules of `masking.py` were used, and some examples."""

    format: str
    rows: Rows
    held_out: Rows | None
    tokens: int
    learnt: int
    longest: int
    counts: Counter[str]
    shown: list[str]


def gather(llm: LLM, asked: Asked, show: int = 0, colours: bool = False) -> Material:
    """Read the files that are asked for. Raises ValueError for what cannot be learnt from, or by this model."""
    masking = Masking(llm, asked.most, asked.truncate)
    format, records = _read(asked.file, asked.preferences)
    other = None if asked.evaluation is None else _read(asked.evaluation, asked.preferences)[1]
    random.Random(f"{asked.seed} held out").shuffle(records)
    count = round(asked.share * len(records))
    if asked.share and count in (0, len(records)):
        raise ValueError(f"--evaluation-share {asked.share:g} of {len(records):,} lines is {count:,}, which leaves "
                         "nothing on one side; give another share, or --evaluation FILE")  # fmt: skip
    groups = [(asked.file, records[count:]), (asked.file, records[:count])]
    if asked.evaluation is not None and other is not None:
        groups[1] = (asked.evaluation, other)
    if asked.preferences:
        pairs = [[pair for pair in _made(masking.pair, *group) if pair] for group in groups]
        _refuse_nothing(pairs, bool(groups[1][1]), masking)
        return _of_pairs(format, pairs[0], pairs[1], masking, show, colours)
    made = [[each for some in _made(masking.examples, *group) for each in some] for group in groups]
    _refuse_nothing(made, bool(groups[1][1]), masking)
    if asked.pack and any(isinstance(mixer, (Recurrent, Entries)) for mixer in llm.spec.mixers):
        raise ValueError("--pack: this model has recurrent layers, or keys that stand for blocks of positions, which "
                         "would go from one example of a row to the next; leave --pack out")  # fmt: skip
    rows = [[[some[n] for n in row] for row in rows_of(some, asked.most if asked.pack else None)] for some in made]
    shown = [masking.shown(each, colours) for each in made[0][:show]]
    held_out = Sequences(rows[1]) if rows[1] else None
    longest = max(sum(len(each.ids) for each in row) for some in rows for row in some)
    return Material(format, Sequences(rows[0]), held_out, *_tokens(made[0]), longest, masking.counts, shown)


def _read(file: Path, preferences: bool) -> tuple[str, list[Record]]:
    """A file's format and records. Raises ValueError where these are pairs of answers and none are asked for, or the
    other way round."""
    format, records = data.read(file)
    if (format == "preference") != preferences:
        remedy = "give --preference dpo or ipo" if format == "preference" else "give lines of chosen and rejected"
        raise ValueError(f"{file}: lines of the format {format!r}; {remedy}")
    return format, records


def _made(make: Callable[[Record], T], file: Path, records: Sequence[Record]) -> list[T]:
    """What becomes of each record of a file. Raises ValueError that names the file and the line."""
    try:
        return [make(each) for each in records]
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None


def _of_pairs(
    format: str, pairs: list[Pair], held_out: list[Pair], masking: Masking, show: int, colours: bool
) -> Material:
    shown = [f"{masking.shown(c, colours)}\nrather than\n{masking.shown(r, colours)}" for c, r in pairs[:show]]
    tokens = _tokens([each for pair in pairs for each in pair])
    longest = max(len(each.ids) for pair in [*pairs, *held_out] for each in pair)
    return Material(
        format, Pairs(pairs), Pairs(held_out) if held_out else None, *tokens, longest, masking.counts, shown
    )


def _tokens(examples: Sequence[Example]) -> tuple[int, int]:
    return sum(len(each.ids) for each in examples), sum(sum(each.learnt) for each in examples)


def _refuse_nothing(made: Sequence[Sequence[object]], judged: bool, masking: Masking) -> None:
    """Raise ValueError where no example is left, of what is learnt or of what is held out."""
    purpose = "to learn from" if not made[0] else "to judge by" if judged and not made[1] else None
    if purpose is not None:
        raise ValueError(f"no example is left {purpose} ({masking.counts['left out, being too long']} are longer "
                         f"than {masking.most} tokens); give a larger --max-length, or more data")  # fmt: skip
