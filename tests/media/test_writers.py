"""Whatever writes a checkpoint keeps what sees and hears, or says that it does not."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm import merge, quantize
from minillm.families.media import is_part
from minillm.tune.learner import write_checkpoint
from tests.conftest import shared
from tests.helpers import adapters, oracles_wrapped
from tests.media import models
from tests.media.recorded import GREEDY, greedy, messages, run

TEXT = r".*language_model.*\.(q_proj|down_proj)"


def towers(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for name, each in load_file(folder / "model.safetensors").items() if is_part(name)}


def same(folder: Path, other: Path, dtype: torch.dtype | None = None) -> None:
    """The same towers, byte for byte or in another type."""
    found, wanted = towers(folder), towers(other)
    assert found.keys() == wanted.keys() != set()
    for name, each in wanted.items():
        assert torch.equal(found[name], each.to(dtype or each.dtype)), name


@pytest.mark.parametrize(("name", "kind"), [("qwen2_5_vl", "int4"), ("gemma3", "int8"), ("qwen2_audio", "int8")])
def test_integers(name: str, kind: str, tmp_path: Path) -> None:
    """A folder sees as the model does that is quantised while it is loaded."""
    folder, output, case = shared(f"media/{name}"), tmp_path / "out", "audio" if name == "qwen2_audio" else "image"
    assert quantize.main(["--weights", str(folder), "--output", str(output), "--quantize", kind]) == 0
    same(output, folder)
    both = minillm.load(output), minillm.load(folder, quantize=kind)
    found, wanted = (run(llm, [greedy(llm, 2, messages=messages(name, case))])[0] for llm in both)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("more", [(), ("--dtype", "bfloat16")], ids=str)
def test_a_merged_adapter(more: tuple[str, ...], tmp_path: Path) -> None:
    """transformers reads what is written: text as PEFT merges it, and the tower as it was."""
    theirs = peft.get_peft_model(models.build(tmp_path, "gemma3"), peft.LoraConfig(r=4, target_modules=TEXT))
    adapters.randomise(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    given = ["--weights", str(tmp_path), "--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "out")]
    assert merge.main([*given, *more]) == 0
    dtype = torch.bfloat16 if more else torch.float32
    same(tmp_path / "out", tmp_path, dtype)
    found = oracles_wrapped.load(tmp_path / "out", dtype=dtype).state_dict()
    for name, wanted in theirs.merge_and_unload().state_dict().items():
        assert (found[name] - wanted.to(dtype)).abs().max() <= (2**-7 if more else 2**-20), name


def test_all_of_a_model_that_was_tuned(tmp_path: Path) -> None:
    folder = shared("media/qwen2_5_vl")
    llm = minillm.load(folder)
    write_checkpoint(llm.prompts.folder, llm.model, tmp_path)
    same(tmp_path, folder)
    asked = {"messages": messages("qwen2_5_vl", "image"), "max_new_tokens": 8, **GREEDY}
    assert minillm.load(tmp_path).generate(**asked).token_ids == llm.generate(**asked).token_ids


def test_a_file_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--weights", str(shared("media/gemma3")), "--output", str(tmp_path / "a.gguf"), "--quantize", "f16"]
    assert quantize.main(given) == 0
    count = len(towers(shared("media/gemma3")))
    assert (
        f"{count} tensors that see or hear are left out: the file has the text model alone" in capsys.readouterr().err
    )
