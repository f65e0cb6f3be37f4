"""The bench: it measures what it says and its last line is JSON. No test looks at how fast anything was."""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from tqdm import tqdm

from minillm import families
from minillm.bench import __main__ as bench
from minillm.bench import engines, worker
from minillm.bench.report import Limits, Point
from minillm.bench.weights import write_random
from minillm.families.shared.shapes import SHAPES
from minillm.hub import DEMO
from minillm.loading import load
from minillm.model.decoder import skeleton
from minillm.report import measure
from tests.conftest import ROOT, exit_code
from tests.helpers import tiny

LISTED = {
    "engine", "shape", "dtype", "quantize", "batch", "prompt", "context", "prefill_tok_s", "decode_tok_s", "load_s",
    "peak_rss_gb", "bandwidth_share", "matrix_share",
}  # fmt: skip


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker imports, with one thread each, and that measuring the machine takes no time."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(measure, "COPY_BYTES", 2**16)
    monkeypatch.setattr(measure, "MATRIX_SIZES", (64,))


@pytest.fixture
def started() -> Callable[[], list[psutil.Process]]:
    """Processes that run and did not when the test began. What other tests have left has no part in it: a model in a
    cycle keeps the process of its chat template until it is collected, and multiprocessing one of its own for ever."""
    gc.collect()
    before = set(psutil.Process().children())
    return lambda: [each for each in psutil.Process().children() if each not in before]


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict, list[str]]:
    """The report, and the lines above it."""
    few = ["--prompt-tokens", "9", "--new-tokens", "3", "--rounds", "2", "--kernels", "reference"]
    assert bench.main([*few, *arguments]) == 0
    *lines, last = capfd.readouterr().out.splitlines()
    return json.loads(last), lines


def test_a_sweep_against_transformers(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, started: Callable[[], list[psutil.Process]]
) -> None:
    """A row for each engine and combination, a ratio for each combination, and a picture; nothing is left running."""
    picture = tmp_path / "sweep.png"
    sizes = ["--batch", "1,2", "--context", "5,30", "--plot", str(picture)]
    report, lines = run(capfd, "--weights", str(DEMO), "--against", "transformers", *sizes)
    assert started() == []
    points = [(batch, 9, context) for batch in (1, 2) for context in (9, 30)]  # 5 positions lie within the prompt
    rows = {(row["engine"], row["batch"], row["prompt"], row["context"]): row for row in report["rows"]}
    assert list(rows) == [(engine, *point) for point in points for engine in ("minillm", "transformers")]
    assert [(each["batch"], each["prompt"], each["context"]) for each in report["ratios"]] == points
    for row in report["rows"]:
        assert set(row) == LISTED
        assert (row["shape"], row["dtype"], row["quantize"]) == ("demo", "bfloat16", "none")
        assert min(row[key] for key in LISTED if key.endswith(("_s", "_gb", "_share"))) > 0
    for each in report["ratios"]:
        ours, theirs = (rows[engine, each["batch"], 9, each["context"]] for engine in ("minillm", "transformers"))
        assert each["against"] == "transformers"
        assert each["load"] == ours["load_s"] / theirs["load_s"]
        assert each["peak_rss"] == ours["peak_rss_gb"] / theirs["peak_rss_gb"]
        assert min(each["decode"], each["prefill"]) > 0
    assert report["threads"] >= 1
    assert sum(line.startswith("| minillm  ") for line in lines) == sum("**" in line for line in lines) == 4
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_dtypes_alone(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a peer there are no ratios; where no size varies the picture has bars."""
    report, _ = run(capfd, "--dtypes", "float32,bfloat16", "--plot", str(tmp_path / "bars.png"))
    assert [row["engine"] for row in report["rows"]] == ["minillm"] * 2
    assert [row["dtype"] for row in report["rows"]] == ["float32", "bfloat16"]
    assert report["ratios"] == []
    assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG"


def stub(path: Path, after_the_check: str) -> str:
    """An interpreter that has every package, and does this when it is to run something."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n{after_the_check}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", "the process of llama.cpp ended early"),
        ('echo \'{"load_s": 1, "cache_bytes_per_value": 2}\'; exit 1', "the process of llama.cpp ended early"),
        ("echo 'minillm: error: it cannot' >&2; exit 2", "it cannot"),
    ],
)
def test_a_peer_that_dies(
    script: str,
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    started: Callable[[], list[psutil.Process]],
) -> None:
    """While it loads or later: one line, exit code 2, and no process stays."""
    given = ["--against", "llama.cpp", "--llama-python", stub(tmp_path / "python", script)]
    assert exit_code(bench.main, given) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert started() == []


@pytest.mark.parametrize("method", ["_answer", "round"])
def test_an_interrupt_ends_the_workers(
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    started: Callable[[], list[psutil.Process]],
) -> None:
    """While they load or run."""

    def interrupted(*given: object) -> None:
        assert len(started()) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(engines.Worker, method, interrupted)
    assert bench.main(["--weights", str(DEMO)]) == 130
    assert started() == []
    assert capfd.readouterr() == ("", "")


def test_a_request_to_end_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: Callable[[], list[psutil.Process]]
) -> None:
    """Neither processes nor the folder with the weights; and the handler is as it was before."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def ended(*given: object) -> None:
        assert len(list(tmp_path.iterdir())) == len(started()) == 1
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(engines.Worker, "round", ended)
    assert exit_code(bench.main, ["--weights", str(DEMO)]) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == started() == []
    assert signal.getsignal(signal.SIGTERM) == before


class Scripted:
    """A worker that takes so many seconds for everything, round by round."""

    SECONDS = (1e9, 1.0, 3.0)

    def __init__(self, name: str, order: list[str]):
        self.name, self.order, self.peak, self.rounds = name, order, None, 0
        self.facts = {"load_s": 1.0, "bytes_per_step": 10, "cache_bytes_per_value": 2}

    def start(self, **point: int) -> None:
        assert point == {"batch": 2, "prompt": 5, "context": 5, "steps": 3}

    def round(self, prompts: list[list[int]], steps: int) -> dict:
        assert (len(prompts), len(prompts[0]), steps) == (2, 5, 3)
        self.order.append(self.name)
        seconds = self.SECONDS[self.rounds]
        self.rounds += 1
        return {"prefill": seconds, "decode": [seconds] * steps}


def test_engines_take_turns() -> None:
    """Another is first in each round, and the round that warms up does not count."""
    order = list[str]()
    workers = [Scripted(name, order) for name in ("minillm", "a", "b")]
    model = skeleton(families.resolve({**SHAPES["qwen3-0.6b"], "num_hidden_layers": 1})[0], torch.float32)
    arguments = bench.parser().parse_args(["--rounds", "2", "--new-tokens", "3"])
    with tqdm(disable=True) as bar:
        rows, found = bench.measure(workers, model, Point(2, 5, 5), arguments, Limits(None, None), bar)
    assert order == ["minillm", "a", "b", "a", "b", "minillm", "b", "minillm", "a"]
    assert [row["prefill_tok_s"] for row in rows.values()] == [5.0] * 3
    assert [row["decode_tok_s"] for row in rows.values()] == [1.0] * 3
    assert [(each["against"], each["decode"]) for each in found] == [("a", 1.0), ("b", 1.0)]


def test_a_missing_peer_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line with what to install, before any weights are written."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("minillm.bench.weights.write_random", lambda *given: pytest.fail("too late"))
    peers = [
        (["transformers"], "pip install -e '.[test]' in the clone"),
        (["llama.cpp", "--llama-python", str(tmp_path / "python")], "pip install llama-cpp-python"),
        (["llama.cpp", "--llama-python", str(tmp_path / "none")], "No such file"),
    ]
    for given, message in peers:
        assert bench.main(["--random", "qwen3-0.6b", "--against", *given]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err


def test_more_positions_than_the_model_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--weights", str(DEMO), "--context", "100000"]) == 2
    assert "the model is meant for" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["minillm", "transformers"])
def test_rounds_behind_a_long_context_are_alike(engine: str) -> None:
    """Each decodes from as many positions as were asked for, and leaves no trace; a prompt alone is continued."""
    settings = {
        "weights": str(DEMO), "dtype": "float32", "device": "cpu", "kernels": "reference", "keep_quantized": False,
        "quantize": "none",
    }  # fmt: skip
    made = engines.ENGINES[engine](settings)
    prompts = tiny.tokens(500, 2, 9).tolist()
    lengths = list[int]()
    name = "cache" if engine == "minillm" else "past"
    length = (lambda held: held.length) if engine == "minillm" else (lambda held: held.get_seq_length())

    def now() -> float:
        lengths.append(length(getattr(made, name)) if hasattr(made, name) else 0)
        return 0.0

    made.now = now
    made.start(batch=2, prompt=9, context=40, steps=3)
    first, second = (worker.timed(made, prompts, 3)["tokens"] for _ in range(2))
    assert first == second
    assert lengths[1:6] == [9, 40, 41, 42, 43]
    made.start(batch=2, prompt=9, context=9, steps=3)
    llm = load(DEMO, "float32", "cpu", "reference")
    own = llm.generate(prompt_ids=prompts[0], max_new_tokens=4, temperature=0, ignore_eos=True).token_ids
    assert worker.timed(made, prompts, 3)["tokens"] == own


def test_random_weights_of_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**SHAPES["qwen3-0.6b"], "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100, "head_dim": 8}
    monkeypatch.setitem(SHAPES, "small", {**small, "intermediate_size": 96})
    write_random(tmp_path, "small")
    llm = load(tmp_path, kernels="reference")
    norms = [p for n, p in llm.model.named_parameters() if "norm" in n]
    assert norms
    assert all((norm == 1).all() for norm in norms)
    assert llm.model.layers[0].ffn.down.weight.float().std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weights", "x", "--random", "qwen3-0.6b"],
        ["--rounds", "0"],
        ["--random", "gpt-5"],
        ["--batch", "1,0"],
        ["--context", "1,,2"],
        ["--dtypes", "bfloat16,int8"],
        ["--quantize", "int3"],
        ["--against", "vllm"],
        ["--llama-python", "python"],
        ["--against", "transformers", "--quantize", "int8"],
        ["profile", "--prompt-tokens", "0"],
        ["profile", "--weights", "x", "--random", "qwen3-0.6b"],
        ["throughput", "--weights", "x", "--random", "qwen3-0.6b"],
        ["throughput", "--sequences", "0"],
        ["throughput", "--least", "9", "--most", "8"],
    ],
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
