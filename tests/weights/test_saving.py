"""What others write of a loaded model: each parameter by itself, and no more than its own bytes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model

import minillm


@pytest.fixture(scope="module")
def llm(saved: Path) -> minillm.LLM:
    return minillm.load(saved)


def test_one_parameter(llm: minillm.LLM, tmp_path: Path) -> None:
    weight = llm.model.norm.weight
    torch.save(weight, tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 4096 + weight.nbytes
    assert torch.equal(torch.load(tmp_path / "one.pt"), weight)


def test_no_two_share_a_storage(llm: minillm.LLM) -> None:
    storages = [each.untyped_storage() for each in llm.model.parameters()]
    assert len({each.data_ptr() for each in storages}) == len(storages)
    assert [each.nbytes() for each in storages] == [each.nbytes for each in llm.model.parameters()]


def test_a_pickle_of_all(llm: minillm.LLM) -> None:
    size = sum(each.nbytes for each in llm.model.parameters())
    data = pickle.dumps(llm.model)
    assert len(data) < 2 * size
    again = pickle.loads(data)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), llm.model.parameters(), strict=True))


def test_save_model_and_load_model(llm: minillm.LLM, saved: Path, tmp_path: Path) -> None:
    save_model(llm.model, str(tmp_path / "all.safetensors"))
    assert load_file(tmp_path / "all.safetensors").keys() == llm.model.state_dict().keys()
    other = minillm.load(saved).model
    for each in other.parameters():
        each.data.zero_()
    assert load_model(other, str(tmp_path / "all.safetensors")) == (set(), [])
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), llm.model.parameters(), strict=True))


def test_the_memory_outlives_the_model(saved: Path) -> None:
    """Each parameter keeps the block alive."""
    weight = minillm.load(saved).model.norm.weight
    assert torch.equal(weight, load_file(saved / "model.safetensors")["model.norm.weight"])
