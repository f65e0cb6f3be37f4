"""Every example runs and says what it promises; the demo is what its script makes, and transformers agrees with it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import minillm
from minillm.hub import DEMO
from tests.conftest import ROOT
from tests.helpers import tiny
from tests.helpers.oracles import played, recorded

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}

DEMOS = [DEMO, ROOT / "examples/demo_moe"]
EXAMPLES: dict[str, tuple[list[str], list[str]] | None] = {  # what is promised, arguments; None has a test below
    "generate_text.py": (["tokens, length)", "|"], []),
    "chat.py": (["> Tell me a story about an owl", "Pip lived"], []),
    "attention_by_hand.py": (["by hand and by the module", "wrote"], ["--plot", "{tmp}/attention.png"]),
    "rope_scalings.py": (["64    29        6       29", "wrote"], ["--plot", "{tmp}/rope.png"]),
    "norm_roundings.py": (["all weights 1 or 2: 0.0 %", "wrote"], ["--plot", "{tmp}/norm.png"]),
    "activations.py": (["silu falls to -0.2785 at -1.278", "wrote"], ["--plot", "{tmp}/activations.png"]),
    "real_model.py": ([], ["--help"]),  # see test_real_model.py
    "compare_formats.py": (["the model itself", "KL 0.00000  same 100.0 %"], [str(DEMO)]),
    "tool_perplexity.py": (["here", "demo ", " %"], ["--text", str(ROOT / "LICENSE"), str(DEMO)]),
    "stored_bits.py": (["GPTQ, 4 bits                 4.156", "wrote"], ["--plot", "{tmp}/bits.png"]),
    "quantisation_error.py": (["int4, groups of 16", "4.71 bits", "wrote"], ["--plot", "{tmp}/error.png"]),
    "grpo.py": (["before: 8 of 64 answers", "round 2: mean reward"], ["--rounds", "2", "--out", "{tmp}/grpo"]),
    "kv_cache.py": (["its slots hold 10 11 7 8 9", "537 MB", "wrote"], ["--plot", "{tmp}/cache.png"]),
    "mla_costs.py": (["formula [1862400, 990976], counted by PyTorch [1862400, 990976]"], ["--plot", "{tmp}/mla.png"]),
    "positions.py": (["64 positions, and the model has learned 32", "wrote"], ["--plot", "{tmp}/positions.png"]),
    "patches.py": (["11 x 7 = 77 tokens", "shift -66", "wrote"], ["--plot", "{tmp}/patches.png"]),
    "per_layer_embeddings.py": (["8,960", "wrote"], ["--plot", "{tmp}/per-layer.png"]),
    "delta_rule.py": (["states of 18 layers: 38.6 MB at any length"], ["--plot", "{tmp}/linear.png"]),
    "state_spaces.py": (["differ by less than 1e-5", "177.9 MB at any length"], ["--plot", "{tmp}/states.png"]),
    "hyper_connections.py": (["20 rounds: rows sum to 1", "wrote"], ["--plot", "{tmp}/streams.png"]),
    "sparse_attention.py": (["the formula says: True", "wrote"], ["--plot", "{tmp}/sparse.png"]),
    "absorb_mla.py": None,
    "balance_experts.py": None,
    "build_from_spec.py": (["parameters", "The quick brown fox jumps over the lazy dog"], []),
    "expert_routes.py": (["layer 3: ", "Daisy"], []),
    "finetune.py": (["before: 0 of 8", "after: 8 of 8 answers are brief"], ["--out", "{tmp}/tuned"]),
    "tuning_memory.py": (["adapter, --quantize int4 --recompute", "at its peak 1.1"], ["--weights", str(DEMO)]),
    "train_demo.py": None,
    "story_grammar.py": (["named Pip", "named Milo"], ["2"]),
    "study.py": ([], []),
}


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`python examples/EXAMPLE ARGUMENTS` in this process: what it writes to stdout."""

    def run(example: str, *arguments: str) -> str:
        script = ROOT / "examples" / example
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as left:
            if left.code:
                pytest.fail(f"exit code {left.code}: {capsys.readouterr().err}")
        return capsys.readouterr().out

    kind = torch.get_default_dtype()
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield run
    torch.set_default_dtype(kind)


def test_every_example_is_listed() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("example", [name for name, given in EXAMPLES.items() if given])
def test_example(example: str, run: Run, tmp_path: Path) -> None:
    promised, arguments = EXAMPLES[example] or ([], [])
    out = run(example, *[argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    for text in promised:
        assert text in out


def test_every_step_of_the_absorption_holds(run: Run) -> None:
    out = run("absorb_mla.py")
    assert "576 as latents, 71 times less" in out
    differences = re.findall(r"largest difference (\S+)", out)
    assert len(differences) == 4
    assert max(map(float, differences)) < 1e-12  # fp64, sums of under 50 terms of size 10


def test_a_process_of_its_own() -> None:
    """As it is called: nothing that tests have imported or set is there."""
    command = [sys.executable, str(ROOT / "examples/generate_text.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "tokens, length)" in done.stdout


def test_a_bad_layer_is_one_line() -> None:
    command = [sys.executable, str(ROOT / "examples/attention_by_hand.py"), "--layer", "4"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 2
    assert done.stderr == "minillm: error: --layer is 4, this model has layers 0 to 3\n"


def test_the_picture_of_balance_is_one(run: Run, tmp_path: Path) -> None:
    out = run("balance_experts.py", "--steps", "30", "--out", str(tmp_path / "balance.png"))
    assert "wrote" in out
    assert (tmp_path / "balance.png").read_bytes().startswith(b"\x89PNG\r\n")
    busiest = {name: float(load) for name, load in re.findall(r"(\w+): loss .* busiest expert (\S+),", out)}
    assert busiest["loss"] < busiest["nothing"]


def test_training_is_reproducible_by_seed(run: Run, tmp_path: Path) -> None:
    for name, seed in (("one", "0"), ("two", "0"), ("other", "1")):
        run("train_demo.py", "--steps", "2", "--seed", seed, "--out", str(tmp_path / name))
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    for file in ("tokenizer.json", "config.json", "generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (DEMO / file).read_bytes()


@pytest.mark.parametrize("demo", DEMOS, ids=["dense", "experts"])
@torch.no_grad()
def test_the_demo_in_transformers(demo: Path) -> None:
    tokens = torch.arange(4, 260)[None]
    theirs, llm = tiny.reference(demo), minillm.load(demo, dtype="float32")
    with recorded(theirs) as routes:
        expected = tiny.logits(theirs, tokens)
    with played(llm.model, routes):
        assert (llm.model(tokens) - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("demo", DEMOS, ids=["dense", "experts"])
def test_a_demo_is_small_enough_to_ship(demo: Path) -> None:
    assert sum(file.stat().st_size for file in demo.iterdir()) <= 2_000_000


@pytest.mark.parametrize("demo", DEMOS, ids=["dense", "experts"])
def test_the_demo_reads_as_sentences(demo: Path) -> None:
    """Every word it writes is a word of the grammar, in capitals where a sentence starts, and it comes to an end."""
    import random
    import re

    sys.path.insert(0, str(ROOT / "examples"))
    from story_grammar import story

    vocabulary = set(re.findall(r"[A-Za-z]+", " ".join(story(random.Random(i))[1] for i in range(2000))))
    result = minillm.load(demo).generate("Once upon a time there was a", max_new_tokens=250)
    assert result.finish_reason == "stop"
    assert set(re.findall(r"[A-Za-z]+", result.text)) <= vocabulary
    sentences = re.split(r"(?<=[.!?])[\"]?\s", result.text)
    assert len(sentences) >= 8
    assert all(re.match(r"[\"]?[A-Z]|said|,", sentence.strip()) for sentence in sentences[1:])
