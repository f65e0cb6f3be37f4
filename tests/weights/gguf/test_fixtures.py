"""Files that llama.cpp's own tools wrote: dequantised tensors equal to its own bit for bit (by their hash), logits and
greedy ids equal to those that transformers computes with them in fp32, and texts continued from the file alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillm.loading import load
from minillm.weights.gguf import reader, tensors
from tests.conftest import SHARED, shared

FOLDERS = sorted(path.name for path in (SHARED / "quant/gguf").glob("*")) or ["zoo-llama-256"]
NEAR = 2e-5  # of the largest logit: what differs is the order of sums


def only(folder: Path) -> Path:
    (file,) = folder.glob("*.gguf")
    return file


@pytest.mark.parametrize("name", FOLDERS)
def test_tensors_bit_for_bit(name: str) -> None:
    folder = shared(f"quant/gguf/{name}")
    recorded = json.loads((folder / "expected/outputs.json").read_text())["sha256_of_dequantised_f32"]
    entries = reader.read(only(folder)).entries
    assert set(recorded) == set(entries)
    odd = []
    for tensor, digest in recorded.items():
        found = tensors.stored(entries[tensor]).values().float().numpy().astype("<f4").tobytes()
        if hashlib.sha256(found).hexdigest() != digest:
            odd.append((tensor, entries[tensor].kind.name))
    assert not odd


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_and_greedy_ids(name: str) -> None:
    folder = shared(f"quant/gguf/{name}")
    llm, expected = load(folder, "float32", "cpu", "reference"), load_file(folder / "expected/outputs.safetensors")
    with torch.no_grad():
        logits = llm.model(expected["tokens"][None].long())[0]
    exact = expected["logits_dequantised_fp32"]
    assert (logits - exact).abs().max() <= NEAR * exact.abs().max()
    greedy = expected["greedy_dequantised_fp32"].tolist()
    options = {"max_new_tokens": len(greedy), "temperature": 0, "ignore_eos": True}
    assert llm.generate(prompt_ids=expected["prompt"].tolist(), **options).token_ids == greedy


@pytest.mark.parametrize("name", ["stories260K-Q8_0", "story-qwen-256-Q6_K"])
def test_texts_are_continued(name: str) -> None:
    """By the file's own vocabulary, as sentences of the stories that the models were trained on."""
    llm = load(shared(f"quant/gguf/{name}"), "float32", "cpu", "reference")
    text = llm.generate("Once upon a time", max_new_tokens=12, temperature=0).text
    assert "there was a" in text
    assert "\ufffd" not in text
