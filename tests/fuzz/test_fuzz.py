"""A bounded share of `python -m tests.fuzz`: the first cases of each class in one worker."""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Iterator

import pytest

from tests.fuzz.case import GENERATE, PLAN, Case
from tests.fuzz.classes import CLASSES, commands
from tests.fuzz.pool import FINE, REFUSED, SECONDS, Worker, judged

SHARE = 80  # cases of a class
SEED = 0 if "CI" in os.environ else random.SystemRandom().randrange(10**6)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the worker forks, and measures by /proc")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(commands(list(CLASSES))) as made:
        yield made


@pytest.mark.parametrize("name", CLASSES)
def test_a_share_of_each_class(name: str, worker: Worker) -> None:
    """Work done, or one line and exit code 2."""
    failed = []
    for at, case in enumerate(itertools.islice(CLASSES[name](SEED), SHARE)):
        outcome = worker.run(case)
        if outcome.failed:
            failed.append(f"seed {SEED}, number {at}, {case.name!r}: {outcome.verdict}: {outcome.said[:500]}")
    assert not failed, "\n".join(failed)


def test_the_honest_checkpoint_runs(worker: Worker) -> None:
    outcome = worker.run(Case("as it is", GENERATE))
    assert (outcome.verdict, outcome.code) == (FINE, 0)
    assert '"token_ids": [' in outcome.out


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_seed_gives_the_same_cases(name: str) -> None:
    first, again, other = (list(itertools.islice(CLASSES[name](seed), 20)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len({str(case.files) + str(case.argv) for case in first}) > 10


REPLY = {"code": 2, "out": "", "err": "minillm: error: no such file\n", "grown": 0}
REPLIES = {
    "refused": ({}, REFUSED),
    "a note before": ({"err": "minillm: a note\nminillm: error: x\n"}, REFUSED),
    "two lines": ({"err": "minillm: error: x\nmore\n"}, "lines"),
    "two errors": ({"err": "minillm: error: x\nminillm: error: y\n"}, "lines"),
    "no line": ({"err": ""}, "lines"),
    "a line without end": ({"err": "minillm: error: " + "x" * 5000}, "lines"),
    "an escape": ({"err": "minillm: error: \x1b[31m\n"}, "lines"),
    "a warning": ({"code": 0, "err": "x.py:1: SyntaxWarning: x\n"}, "lines"),
    "an error and exit 0": ({"code": 0}, "lines"),
    "through": ({"code": None, "err": "came through: KeyError x\n"}, "traceback"),
    "a panic": ({"err": "thread '<unnamed>' panicked at x.rs:1\nminillm: error: x\n"}, "traceback"),
    "a fault of ours": ({"code": 1, "err": "minillm: error: a fault of minillm itself: KeyError\n"}, "fault"),
    "much memory": ({"grown": 2 * 10**9}, "memory"),
    "no memory": ({"err": "minillm: error: not enough memory (x); take less\n"}, "memory"),
    "half an answer": ({"out": "{"}, "output"),
    "no JSON": ({"code": 0, "err": "", "out": "{"}, "output"),
    "not a number": ({"code": 0, "err": "", "out": '{"x": NaN}'}, "output"),
    "done": ({"code": 0, "err": "minillm: a note\n", "out": '{"x": 1}'}, FINE),
    "killed": ({"died": -6}, "signal"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_verdicts(name: str) -> None:
    changes, expected = REPLIES[name]
    outcome = judged(Case(name, GENERATE), {**REPLY, **changes}, False, 0.0)
    assert outcome.verdict == expected, outcome.said


def test_a_worker_outlives_what_its_cases_do() -> None:
    """A crash, a hang and a lack of memory are told apart, and the next case runs."""
    expected = {"abort": "signal", "wait": "hang", "fill": "memory", "let_through": "traceback"}
    names = {f"tests.fuzz.misdeeds:{name}": verdict for name, verdict in expected.items()}
    with Worker(("generate", "plan", *names)) as worker:
        found = {name: worker.run(Case(name, [name]), 1.0 if "wait" in name else SECONDS).verdict for name in names}
        assert found == names
        assert worker.run(Case("after them", PLAN)).verdict == FINE
