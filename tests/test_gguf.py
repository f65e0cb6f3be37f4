"""A GGUF file in the place of a folder, for the commands that take one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm import generate, hub, perplexity, quantize
from minillm.diff import __main__ as diff
from minillm.explain import __main__ as explain
from minillm.guard import files
from minillm.guard.jsonfile import read_json
from minillm.lens import __main__ as lens
from minillm.loading import load
from minillm.plan import __main__ as plan
from minillm.weights import ints
from tests.conftest import exit_code, shared


@pytest.fixture
def quantised() -> Path:
    """27 types of tensors in one file."""
    return shared("quant/gguf/zoo-llama-256/zoo-llama-256.gguf")


def said(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON that a command prints."""
    assert exit_code(main, [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_folder_with_one_is_the_file(quantised: Path) -> None:
    assert hub.resolve(quantised.parent) == hub.resolve(quantised) == quantised
    assert files.is_folder(quantised)
    assert read_json(quantised / "config.json")["model_type"] == "llama"
    assert not files.is_there(quantised / "README.md")


def test_generate(quantised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and conversations, by the vocabulary and the template of the file; a story ends at its EOS."""
    llm = load(quantised, "float32", "cpu", "reference")
    assert llm.stop_ids == {1}
    assert llm.generate("Once upon a time", max_new_tokens=8, temperature=0).text.strip()
    ids = llm.chat_prompt([{"role": "user", "content": "A story, please."}])
    assert ids[:2] == [0, 2]
    found = said(generate.main, capsys, "--weights", quantised, "--prompt", "Once", "--max-new-tokens", 4)
    assert len(found["token_ids"]) == 4


def test_explain_and_plan(quantised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All tensors are claimed, and the size is that of the tensors in the file to the byte."""
    found = said(explain.main, capsys, "--weights", quantised)
    faults = ("unknown_config_keys", "unclaimed_tensors", "unfilled_parameters", "misshapen_tensors", "other_faults")
    assert [found[key] for key in faults] == [[]] * 5
    assert (found["quantization"], found["dtype"]) == ("gguf", "bfloat16")
    planned = said(plan.main, capsys, "--weights", quantised)
    entries = hub.reader.read(quantised).entries
    assert planned["checkpoint_bytes"] == sum(entry.nbytes for entry in entries.values())
    assert planned["parameters"] == found["parameter_count"]


def test_lens_and_perplexity(quantised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(lens.main, capsys, "--weights", quantised, "--prompt", "Once upon a time")
    assert found["tokens"]
    (tmp_path / "text.txt").write_text("Once upon a time there was a shy turtle named Daisy. " * 8)
    measured = said(perplexity.main, capsys, "--weights", quantised, "--text", tmp_path / "text.txt")
    assert 1 < measured["before"]["perplexity"] < 100


def test_diff(quantised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the folder that it was made from; transformers does not get the file."""
    base = shared("quant/base/story-llama-256")
    found = said(diff.main, capsys, "--weights", quantised, "--against", base, "--kernels", "reference")
    assert found
    assert exit_code(diff.main, ["--weights", str(quantised)]) == 2
    assert "give --against FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stories-gemma2-Q8_0", "stories-deepseek-v3-Q8_0", "stories260K-Q8_0"])
def test_quantised_once_more(name: str, tmp_path: Path) -> None:
    """A folder of int8 matrices made of a file is the same model but for them, whatever a converter had changed: turned
    rows, norms with 1 added, keys and values apart."""
    file = shared(f"quant/gguf/{name}")
    quantize.quantize(file, tmp_path / "made", ints.scheme("int8"))
    made, whole = (load(path, "float32", "cpu", "reference") for path in (tmp_path / "made", file))
    prompt = {"prompt": "Once upon a time", "max_new_tokens": 12, "temperature": 0}
    assert made.generate(**prompt).text == whole.generate(**prompt).text
    assert made.spec == whole.spec
