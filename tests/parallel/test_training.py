"""Training over several processes is training in one: losses, norms and weights of AdamW's steps; a run that goes on;
and one line and an end for all where one of them fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from minillm.parallel import launch
from minillm.tune.__main__ import _parser, main
from minillm.tune.prepare import prepare
from minillm.tune.sharded import Sharded
from minillm.tune.team import ALONE
from tests.parallel.drawn import saved
from tests.parallel.forks import FAULT, Forks
from tests.parallel.trainer import BAD, CASES, GOES_ON, SPLIT, trained
from tests.tune.conftest import ADAPTER, losses, talk, written

Expected = dict[str, tuple[list[list[Any]], dict[str, Tensor]]]
# Losses are of 6 nats, where fp32 has steps of 5e-7; 4 of these and relative norms of 3e-6 were seen.
LOSS, NORM, WEIGHTS = {"abs": 2e-6, "rel": 1e-6}, {"rel": 1e-5}, 1e-5


@pytest.fixture(scope="module")
def expected() -> Expected:
    found = {case: trained(case, ALONE) for case in {*CASES.values(), *SPLIT.values()}}
    return {name: found[case] for name, case in {**CASES, **SPLIT}.items()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("count", "cases"), [(2, [*CASES, *SPLIT]), (4, ["full", "adapter", "full over layers"])])
def test_steps_are_those_of_one_process(
    count: int, cases: list[str], tmp_path: Path, expected: Expected, forks: Forks
) -> None:
    """They share rows and weights, or every layer. Of the rows of a step one rank may have none. A run that was cut off
    between the saves of two ranks goes on from the step that both have, bit for bit; what each has kept, torch puts
    together; and who has a line whose loss is no number says so."""
    store = {"WORLD_SIZE": str(count), launch.STORE: str(tmp_path / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    worker = ["tests.parallel.trainer", str(count), str(tmp_path), *cases]
    made = [forks.start(*worker, RANK=str(rank), **store) for rank in range(count)]
    ended = [each.ended() for each in made]
    assert [code for code, _, _ in ended] == [0] * count, ended
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"step 1: the loss is nan on lines {BAD}, first in the loss" in (tmp_path / "said.txt").read_text()
    for name in cases:
        wanted = expected[name]
        for said, one in zip(found.pop(name), wanted[0], strict=True):
            assert said[0] == pytest.approx(one[0], **LOSS), name
            assert said[1] == pytest.approx(one[1], **NORM), name
            assert said[2] == (one[2] and pytest.approx(one[2], **LOSS)), name
        values = load_file(tmp_path / f"{name}.safetensors")
        assert values.keys() == wanted[1].keys()
        far = {key: float((each - wanted[1][key]).abs().max()) for key, each in values.items()}
        assert max(far.values()) < WEIGHTS, name
        if name in SPLIT:
            continue
        read = {key: torch.empty_like(each) for key, each in values.items()}
        load(read, storage_reader=HuggingFaceStorageReader(str(tmp_path / f"{name} kept")), no_dist=True)
        assert all(torch.equal(each, values[key]) for key, each in read.items()), name
    goes_on = [f"{name} goes on" for name in (*GOES_ON, "split")] if count == 2 else []
    assert found == {name: [2, 0, 0] for name in goes_on}


def test_layers_that_share_weights_are_not_put_together_one_by_one(tmp_path: Path) -> None:
    command = ["--weights", str(saved(tmp_path, "zamba2")), "--data", __file__, "--output", "out", "--ranks", "2"]
    with pytest.raises(ValueError, match="--ranks: some layers of this model share their weights"):
        prepare(_parser().parse_args(command))


class Fake(Sharded):
    """One of several that exchanges nothing."""

    def __init__(self, rank: int, count: int):
        self.count, self.ranks = count, type("Rank", (), {"rank": rank})()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_row_counts_once(size: int, count: int) -> None:
    """All ranks take as many batches, and no row is left out or counted twice."""
    shares = [Fake(rank, count).rows(range(10, 10 + size), 2) for rank in range(count)]
    assert len({len(each) for each in shares}) == 1
    assert len({Fake(rank, count).seed(7) for rank in range(count)}) == count  # what is dropped is not the same in all
    counted = [row for share in shares for rows, times in share for row in rows if times]
    assert counted == list(range(10, 10 + size))
    assert all(len(rows) in (1, 2) for share in shares for rows, _ in share)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Three rows, of which four ranks would have to share."""
    said = [talk(f"What is {n} and {n}?", f"It is {n + n}, said the owl. " * (1 + n)) for n in range(3)]
    return written(tmp_path / "train.jsonl", [{"messages": each} for each in said])


QUICK = ["--dtype", "float32", "--steps", "4", "--batch", "3", "--micro-batch", "1", "--rank", "4", "--every", "2"]


def test_a_rank_that_is_killed_ends_all_and_the_same_command_goes_on(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], forks: Forks
) -> None:
    command, output = ["--data", data, *QUICK], tmp_path / "out"
    assert main([*command, "--output", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    given = [*command, "--output", str(output), "--ranks", "2"]
    fault = {FAULT: json.dumps({"rank": 1, "step": 4})}
    code, _, said = forks.start("minillm.tune", *given, **fault).ended()
    assert (code, said.count("minillm: error: ")) == (2, 1), said
    said = said.splitlines()[-1]
    # What the second has died of, or where whoever watches gets no turn for seconds, that the first has nobody left.
    assert said.startswith(("minillm: error: rank 1 of 2: ended by SIGKILL", "minillm: error: rank 0 of 2: another"))
    assert len(losses(output)) == 3
    code, _, said = forks.start("minillm.tune", *given).ended()
    assert code == 0, said
    assert "going on behind step 2 of 4" in said
    assert "memory of each of 2 ranks: weights " in said
    assert said.count("training an adapter of 38,912 values") == 1
    assert losses(output) == pytest.approx(losses(tmp_path / "alone"), **LOSS)
    files = {each.name for each in output.iterdir()}
    kept = {f"last-4-{rank}-of-2.safetensors" for rank in range(2)}
    assert files == {"adapter_config.json", ADAPTER, *kept, "log.jsonl", "report.html", "loss.png"}
    ours, theirs = (load_file(each / ADAPTER) for each in (output, tmp_path / "alone"))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < WEIGHTS
    assert main(given[:-2]) == 2
    assert "has several processes (last-4-" in capsys.readouterr().err


def test_a_rank_with_other_data_is_named(data: str, tmp_path: Path, forks: Forks) -> None:
    other = written(tmp_path / "other.jsonl", [{"messages": talk("What is it?", "An owl.")}] * 3)
    fault = {FAULT: json.dumps({"rank": 1, "data": other})}
    given = [*QUICK, "--output", str(tmp_path / "out"), "--ranks", "2", "--data", data]
    code, _, said = forks.start("minillm.tune", *given, **fault).ended()
    assert code == 2, said
    assert "rank 1 has another checkpoint, data, options or version of minillm than rank 0" in said
    assert said.count("minillm: error: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", "2", "--preference", "dpo"], "--preference works in one process only; leave --ranks out"),
        (["--ranks", "2", "--teacher", "x"], "--teacher works in one process only; leave --ranks out"),
        (["--ranks", "2", "--full", "--optimizer", "muon"], "--optimizer muon with --full needs whole matrices"),
        (["--stages", "2"], "--stages and --layers split a model that generates; training is over --ranks"),
        (["--rank-timeout", "5"], "--rank-timeout needs several processes; give --ranks"),
        (["--ranks", "0"], "--ranks is 0, it must be from 1 to 1024"),
        (["--ranks", "99"], "--ranks is 99, and a step has 16 rows, so some would have nothing to do; give at most"),
        (["--split"], "--split needs several processes; give --ranks too"),
        (["--ranks", "2", "--split", "--optimizer", "muon"], "--optimizer muon with --split needs whole matrices"),
    ],
)
def test_what_several_ranks_cannot_do_is_one_line(
    options: list[str], said: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before any is started, and in one of them."""
    monkeypatch.setattr(launch, "start", lambda *given: 0)
    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "2", launch.STORE: "x"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["--data", data, "--output", str(tmp_path / "out"), *options]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_parameters_of_two_types_are_not_shared_out() -> None:
    import minillm
    from minillm.tune.learner import whole

    llm = minillm.load(dtype="float32", device="cpu", kernels="reference")
    named = whole(llm).named
    llm.model.norm.weight.data = llm.model.norm.weight.data.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"are torch\.bfloat16 and torch\.float32.*give --dtype float32"):
        Fake(0, 2).share(llm.model, named)
