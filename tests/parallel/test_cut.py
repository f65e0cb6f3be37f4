"""What each rank reads of a checkpoint's files: its own rows and columns, in whatever they are stored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm import quantize
from minillm.hub import DEMO
from minillm.loading import lay_out
from minillm.model import held
from minillm.parallel import kept as keeping
from minillm.parallel import split
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.source import Source
from tests.helpers import tiny
from tests.parallel.threads import Thread, in_threads, led, share

AGREES = 2e-5
TOKENS = torch.tensor([[3, 17, 5, 60, 41, 8, 2, 33, 12]])


def logits(folder: Path, ranks: int, **options: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return in_threads(ranks, lambda rank: share(folder, rank, **options).model(TOKENS))


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_value_is_read_once_or_by_all_that_hold_it(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes that come out of the file; what a progress bar counts to is the same number."""
    checkpoint, read = Checkpoint(DEMO), [0]
    values = sum(each.nbytes for each in checkpoint.stored.values())
    spec = lay_out(DEMO).model.spec
    width = checkpoint.dtype.itemsize  # type: ignore[union-attr]
    whole = {name: width * each.numel() for name, each in lay_out(DEMO).model.named_parameters()}
    plain = Source.read_into

    def counted(self: Source, memory: memoryview, at: int) -> None:
        read[0] += len(memory)
        plain(self, memory, at)

    monkeypatch.setattr(Source, "read_into", counted)
    parts = [lay_out(DEMO, ranks=each) for each in in_threads(ranks, lambda rank: rank)]
    for laid in parts:
        names = laid.planned.assignments
        for name, stored in laid.checkpoint.read(names.__contains__, lambda nbytes: None):
            before = read[0]
            stored.values()
            assert read[0] - before == stored.nbytes, name
    total = sum(laid.checkpoint.nbytes for laid in parts)
    kept = keeping.kept(spec, ranks, 0)
    replicated = sum(nbytes for name, nbytes in whole.items() if name not in kept) * (ranks - 1)
    keys = spec.layers[0].attention
    of_one = 2 * width * keys.head_dim * spec.hidden_size * len(spec.layers)  # kv head, in all layers
    assert total == values + replicated + of_one * max(ranks - keys.num_kv_heads, 0)


def held_by_two(folder: Path) -> list[str]:
    """The modules of the first of two ranks whose matrices stay as they are; the two give one process's logits."""
    expected = minillm.load(folder, dtype="float32", device="cpu", kernels="reference").model(TOKENS)
    for found in logits(folder, 2):
        assert (found - expected).abs().max() <= AGREES
    model = share(folder, Thread(in_threads(2, lambda rank: rank.meeting)[0], 0)).model
    return [name for name, module in model.named_modules() if held.held_in(module)]


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantised_folder(scheme: str, tmp_path: Path) -> None:
    """Matrices whose cuts fall between groups stay as they are, the others are dequantised: the same numbers."""
    quantize.main(["--weights", str(DEMO), "--quantize", scheme, "--output", str(tmp_path / "made")])
    stays = held_by_two(tmp_path / "made")
    assert any("qkv" in name for name in stays)
    assert any("down" in name for name in stays)


@pytest.mark.parametrize("thin", [0, 128])
def test_quantised_experts(thin: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole ones stay as they are; so do slices that are whole groups."""
    monkeypatch.setattr(split, "THIN", thin)
    tiny.save(tmp_path / "plain", *tiny.ROWS["mixtral"])
    quantize.main(["--weights", str(tmp_path / "plain"), "--quantize", "int4", "--output", str(tmp_path / "made")])
    stays = held_by_two(tmp_path / "made")
    assert any("experts" in name for name in stays)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_gguf_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    quantize.main(["--weights", str(DEMO), "--quantize", kind, "--output", str(path)])
    expected = minillm.load(path, dtype="float32", device="cpu", kernels="reference").model(TOKENS)
    for found in logits(path, 2):
        assert (found - expected).abs().max() <= AGREES


def test_a_bin_file(tmp_path: Path) -> None:
    tensors = {name: each.values().view(each.shape) for name, each in Checkpoint(DEMO).stored.items()}
    for path in DEMO.glob("*.json"):
        shutil.copy(path, tmp_path)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    expected = minillm.load(tmp_path, dtype="float32", device="cpu", kernels="reference").model(TOKENS)
    for found in logits(tmp_path, 2):
        assert (found - expected).abs().max() <= AGREES


def test_quantised_while_it_is_read() -> None:
    """Each rank quantises what it holds: the same text as it, and a model of fewer bytes."""
    how = {"prompt": "Once upon a time", "max_new_tokens": 8, "temperature": 0}
    found = led(
        DEMO, 2, lambda llm: (llm.generate(**how).text, sum(p.nbytes for p in llm.model.parameters())), quantize="int4"
    )
    one = minillm.load(DEMO, dtype="float32", device="cpu", kernels="reference", quantize="int4")
    assert found[1] < 0.62 * sum(each.nbytes for each in one.model.parameters())
    assert found[0] == one.generate(**how).text


@pytest.mark.parametrize(
    ("row", "thin"),
    [("gpt_neox", 0), ("phi3", 0), *((row, each) for row in ("gpt_oss", "qwen3_next", "mixtral") for each in (0, 128))],
)
def test_tensors_that_lie_otherwise(row: str, thin: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused, interleaved, stacked; of experts slices, and whole ones."""
    monkeypatch.setattr(split, "THIN", thin)
    tiny.save(tmp_path, *tiny.ROWS[row])
    expected = minillm.load(tmp_path, dtype="float32", device="cpu", kernels="reference").model(TOKENS)
    for found in logits(tmp_path, 2):
        assert (found - expected).abs().max() <= AGREES
