"""Gemma 3's larger models read images too: their text runs alone, in each layout that files have, and it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from tests.helpers import tiny


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model."])
@torch.no_grad()
def test_the_text_of_a_model_that_reads_images(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config with a section for the text, a prefix before its tensors, and a tower that is left out knowingly."""
    theirs = tiny.save(tmp_path, *tiny.ROWS["gemma3"])
    tensors = load_file(tmp_path / "model.safetensors")
    nested = {name.replace("model.", layout, 1): tensor for name, tensor in tensors.items()}
    towers = ("vision_tower.", "multi_modal_projector.") if layout.startswith("language") else ("model.vision_tower.",)
    nested |= {f"{tower}a.weight": torch.ones(2) for tower in towers}
    save_file(nested, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((tmp_path / "config.json").read_text())
    outer = {
        "model_type": "gemma3",
        "vision_config": {"hidden_size": 8},
        "image_token_index": 5,
        "dtype": text["dtype"],
    }
    (tmp_path / "config.json").write_text(json.dumps({**outer, "text_config": text}))
    capsys.readouterr()
    llm, tokens = minillm.load(tmp_path), tiny.tokens(97, 1, 20)
    assert (llm.model(tokens) - tiny.logits(theirs, tokens)).abs().max() <= 2e-5
    said = capsys.readouterr().err
    reason = "the part that sees or hears, which is read with the first picture or sound"
    assert said == f"minillm: {len(towers)} tensors left out: {reason}\n"


def test_a_text_section_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": [1]}))
    tiny.refused(tmp_path, "text_config is '[1]', expected an object")
