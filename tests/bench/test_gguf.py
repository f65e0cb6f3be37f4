"""A GGUF file in the bench: both engines get this very file, and bytes are counted as it stores them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from minillm import config, families, hub
from minillm.bench import __main__ as bench
from minillm.bench import worker
from minillm.bench.weights import stored_bytes_per_step
from minillm.model.decoder import Decoder, skeleton
from minillm.report import measure
from minillm.weights.gguf import reader
from tests.conftest import ROOT, shared

# An interpreter with every package, whose llama.cpp writes down what it is given and always answers 7.
PEER = """#!{python}
import json, runpy, sys, time
if sys.argv[1] != "-c":
    worker = runpy.run_path({worker!r})
    class Fake:
        def __init__(self, settings):
            open({seen!r}, "a").write(json.dumps(settings) + "\\n")
            self.facts = {{"load_s": 1.0, "cache_bytes_per_value": 2}}
        def start(self, **point): pass
        def prefill(self, prompts): return [7] * len(prompts)
        def rewind(self): pass
        def decode(self, tokens): return [7] * len(tokens)
        def now(self): return time.perf_counter()
    worker["serve"](Fake, json.loads(sys.argv[2]))
"""


def file(name: str) -> Path:
    (found,) = shared(f"quant/gguf/{name}").glob("*.gguf")
    return found


def model_of(path: Path) -> Decoder:
    return skeleton(families.resolve(config.read(hub.resolve(path)))[0], torch.float32)


def test_both_engines_get_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As it is, whatever minillm makes of it: nothing is written for llama.cpp."""
    path, seen, python = file("story-qwen-256-Q4_K_M"), tmp_path / "seen", tmp_path / "python"
    python.write_text(PEER.format(python=sys.executable, worker=worker.__file__, seen=str(seen)))
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(measure, "COPY_BYTES", 2**16)
    monkeypatch.setattr(measure, "MATRIX_SIZES", (64,))
    monkeypatch.setattr(bench, "write_gguf", lambda *given: pytest.fail("a file is written"))
    few = ["--prompt-tokens", "9", "--new-tokens", "3", "--rounds", "2", "--kernels", "reference"]
    peer = ["--against", "llama.cpp", "--llama-python", str(python), "--quantize", "none,int8"]
    assert bench.main([*few, *peer, "--weights", str(path)]) == 0
    rows = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["engine"], row["quantize"]) for row in rows] == [
        (engine, quantize) for quantize in ("none", "int8") for engine in ("minillm", "llama.cpp")
    ]
    assert {row["shape"] for row in rows} == {path.name}
    assert [json.loads(line)["weights"] for line in seen.read_text().splitlines()] == [str(path)] * 2


def test_bytes_of_a_step_are_those_stored() -> None:
    """Of a tied embedding all, as it is the head; of an untied one none; of experts the share that a token goes to."""
    sizes = {name: entry.nbytes for name, entry in reader.read(file("zoo-llama-256")).entries.items()}
    found = stored_bytes_per_step(file("zoo-llama-256"), model_of(file("zoo-llama-256")))
    assert found == sum(sizes.values()) - sizes["token_embd.weight"]
    tied = file("story-qwen-256-Q4_K_M")
    assert stored_bytes_per_step(tied, model_of(tied)) == sum(
        entry.nbytes for entry in reader.read(tied).entries.values()
    )
    mixture = file("stories-qwen3-moe-Q8_0")
    contents, total = reader.read(mixture), 0.0
    share = contents.metadata["qwen3moe.expert_used_count"] / contents.metadata["qwen3moe.expert_count"]
    assert 0 < share < 1
    for name, entry in contents.entries.items():
        looked_up = name == "token_embd.weight" and "output.weight" in contents.entries
        total += 0 if looked_up else entry.nbytes * (share if "_exps" in name else 1)
    assert stored_bytes_per_step(mixture, model_of(mixture)) == round(total)


def test_transformers_does_not_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--weights", str(file("zoo-llama-256")), "--against", "transformers"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "leave it out of --against" in err
