"""Adapters of a model that several ranks share, or stages: cut as the model is, they add what they add to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm.adapters.attach import attach
from minillm.adapters.config import ALL, AdapterConfig
from minillm.hub import DEMO
from minillm.parallel import split
from tests.parallel.drawn import saved
from tests.parallel.threads import Stage, Thread, in_threads, led, share

AGREES = 2e-5
TOKENS = torch.tensor([[3, 17, 5, 60, 41, 8, 2, 33, 12]])
HOW: dict[str, Any] = {"dtype": "float32", "device": "cpu", "kernels": "reference"}
ENDS = ["q_proj", "down_proj", "embed_tokens", "lm_head"]


def written(base: Path, folder: Path, seed: int = 0, **config: Any) -> Path:
    """An adapter that changes much."""
    llm = minillm.load(base, **HOW)
    made = attach(llm, AdapterConfig(**{"r": 3, "lora_alpha": 6, "target_modules": ALL, **config}), seed)
    torch.manual_seed(seed)
    for each in made.parameters():
        each.data.normal_(std=0.1)
    made.write(folder)
    return folder


@pytest.mark.parametrize(
    ("row", "ranks", "thin", "config"),
    [
        ("llama", 4, 0, {}),  # kv heads that two ranks have
        ("llama", 2, 0, {"target_modules": ENDS}),
        ("gemma3", 2, 0, {"target_modules": ENDS}),  # head and embedding are one matrix
        ("phi3", 2, 0, {}),  # q, k and v in one
        ("phi", 2, 0, {"lora_bias": True, "bias": "lora_only"}),
        ("mixtral", 2, 0, {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
        ("mixtral", 2, 128, {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
        ("deepseek_v3", 2, 0, {}),
    ],
)
@torch.no_grad()
def test_an_adapter_is_cut_as_the_model_is(
    row: str, ranks: int, thin: int, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "THIN", thin)
    saved(tmp_path / "base", row)
    folder = written(tmp_path / "base", tmp_path / "adapter", **config)
    plain = minillm.load(tmp_path / "base", **HOW).model(TOKENS)
    expected = minillm.load(tmp_path / "base", adapter=folder, **HOW).model(TOKENS)
    assert (expected - plain).abs().max() > 0.1
    for merged in (False, True):
        how = (folder, merged)
        for found in in_threads(ranks, lambda rank: share(tmp_path / "base", rank, *how).model(TOKENS)):  # noqa: B023
            assert (found - expected).abs().max() <= AGREES
    if row == "llama":
        two = in_threads(2, lambda rank: share(tmp_path / "base", rank, folder, layers="1,2").model(TOKENS), Stage)
        assert torch.equal(two[0], expected)


def test_requests_choose(tmp_path: Path) -> None:
    """Each its own, in one batch: the other ranks are told."""
    folders = {name: written(DEMO, tmp_path / name, seed) for seed, name in enumerate("ab")}
    chosen = [None, "a", "b"]

    def texts(llm: minillm.LLM) -> list[Any]:
        how = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
        return [llm.generate("Once upon a time", adapter=name, **how).token_ids for name in chosen]

    expected = texts(minillm.load(DEMO, adapter=folders, **HOW))
    assert len({*map(tuple, expected)}) == 3
    for kind, how in ((Thread, {}), (Stage, {"layers": "2,2"})):
        assert led(DEMO, 2, texts, kind, adapter=folders, **how) == expected


def test_what_whole_rows_are_needed_for_is_refused(tmp_path: Path) -> None:
    folder = written(DEMO, tmp_path, use_dora=True)
    with pytest.raises(ValueError, match=r"use_dora, which divides by the size of whole rows.*merge it first"):
        in_threads(2, lambda rank: share(DEMO, rank, folder))
