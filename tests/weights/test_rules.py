"""The table from tensor names to parameters: which rule wins, what lies otherwise in a file, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.config import read
from minillm.families import resolve
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.load import load
from minillm.weights.rules import DROP, Destination, plan
from minillm.weights.save import save
from tests.helpers import tiny


def test_the_most_literal_rule_wins() -> None:
    rules = {"a.{i}.w": "p.{i}", "a.1.w": DROP, "a.{i}.{j}": "q.{i}.{j}"}
    destinations = {name: Destination(name, 0, (1,)) for name in ("p.0", "q.2.3")}
    made = plan(["a.0.w", "a.1.w", "a.2.3", "a.00.w", "b"], rules, destinations)
    assert {tensor: to.parameter for tensor, to in made.assignments.items()} == {"a.0.w": "p.0", "a.2.3": "q.2.3"}
    assert (made.dropped, made.unclaimed, made.unfilled) == (["a.1.w"], ["a.00.w", "b"], [])


def test_a_parameter_is_filled_once() -> None:
    made = plan(["x", "y"], {"x": "p", "y": "p"}, {"p": Destination("p", 0, (1,))})
    assert made.twice_filled == ["y"]


DESTINATIONS = {
    "p[a]": Destination("p", 0, (4, 3)),
    "p[b]": Destination("p", 4, (4, 3)),
    "q": Destination("q", 0, (3,)),
}


def filled(data: torch.Tensor, target: str, folder: Path) -> torch.Tensor:
    """p, with a tensor in the layout that its target gives."""
    save_file({"x": data.contiguous(), "y": torch.zeros(3)}, folder / "model.safetensors")
    made = plan(["x", "y"], {"x": target, "y": "q"}, DESTINATIONS)
    assert (made.unclaimed, made.unfilled) == ([], [])
    assert made.assignments["x"].stored_shape == data.shape
    skeleton = {"p": torch.empty(8, 3), "q": torch.empty(3)}
    return load(Checkpoint(folder), made, skeleton, torch.device("cpu"))["p"]


def test_a_tensor_of_several_blocks(tmp_path: Path) -> None:
    """A parameter's blocks one under the other, some rows of each in turn, or its columns where rows are expected."""
    data = torch.arange(24.0).view(8, 3)
    assert torch.equal(filled(data, "p", tmp_path), data)
    two = filled(data, "p: (times part d) e -> (part times d) e, times=2 part=2", tmp_path)
    assert torch.equal(two, data[[0, 1, 4, 5, 2, 3, 6, 7]])
    four = filled(data, "p: (times part d) e -> (part times d) e, times=4 part=2", tmp_path)
    assert torch.equal(four, data[[0, 2, 4, 6, 1, 3, 5, 7]])
    stacked = filled(data.view(2, 4, 3).mT, "p: x i o -> (x o) i, x=2", tmp_path)
    assert torch.equal(stacked, data)


def test_a_block_is_filled_once() -> None:
    made = plan(["x", "y"], {"x": "p", "y": "p[b]"}, DESTINATIONS)
    assert (made.twice_filled, made.unfilled) == (["y"], ["q"])
    assert plan(["x"], {"x": "p[c]"}, DESTINATIONS).unclaimed == ["x"]


@pytest.mark.parametrize(
    "row",
    [
        "llama",
        "qwen3_moe",
        "deepseek_v2-lite",
        "deepseek_v2",
        "deepseek_v3",
        "mixtral",
        "gemma2",
        "phi3",
        "gpt_neox",
        "gpt_oss",
    ],
)
@torch.no_grad()
def test_what_is_saved_is_what_transformers_reads(row: str, tmp_path: Path) -> None:
    """Under the published names: a model written back gives the same logits there."""
    theirs = tiny.save(tmp_path, *tiny.ROWS[row])
    tokens = tiny.tokens(97, 1, 12)
    expected = tiny.logits(theirs, tokens)
    before = set(load_file(tmp_path / "model.safetensors"))
    _, rules, _ = resolve(read(tmp_path))
    model = minillm.load(tmp_path, "float32", kernels="reference").model
    save(tmp_path / "model.safetensors", dict(model.named_parameters()), rules, model.destinations())
    assert set(load_file(tmp_path / "model.safetensors")) == before
    assert torch.equal(tiny.logits(tiny.reference(tmp_path), tokens), expected)
