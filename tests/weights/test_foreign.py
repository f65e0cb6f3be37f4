"""Folders that are no checkpoint: the error says what they are and what to give instead, in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import minillm
from minillm import hub
from minillm.weights.foreign import only_gguf
from tests.helpers.tiny import refused, refused_by_command
from tests.weights.gguf import made

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


def files(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"{}")

    return make


def adapter(folder: Path) -> None:
    files("adapter_model.safetensors")(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some-org/base"}))


WITHOUT_CONFIG: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "adapter": (adapter, ("adapter", "(some-org/base) as --weights", "--adapter")),
    "makers, cut off": (files("params.json"), ("params.json", "consolidated.*")),
    "makers, pickled": (files("consolidated.00.pth"), ("params.json", "consolidated.00.pth")),
    "trainer": (
        files("checkpoint-500/config.json", "checkpoint-1000/config.json"),
        ("checkpoint-1000", "training run"),
    ),
    "folder inside": (files("inner/config.json"), ("a folder whose", "inner")),
    "deepspeed": (files("zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"), ("zero_to_fp32.py", "shards")),
    "fsdp": (files("__0_0.distcp", ".metadata"), ("__0_0.distcp", "merge-weights")),
}


@pytest.mark.parametrize("kind", WITHOUT_CONFIG)
def test_folders_without_a_config(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = WITHOUT_CONFIG[kind]
    make(tmp_path)
    refused_by_command(tmp_path, capsys, "no config.json: this is", *words)
    with pytest.raises(ValueError, match=words[0]):
        hub.resolve(tmp_path, tensors=False)


@pytest.mark.parametrize("kind", ["adapter", "makers, pickled", "deepspeed", "fsdp"])
def test_folders_without_weights(kind: str, folder: Path) -> None:
    """A config.json was copied beside what they have."""
    (folder / "model.safetensors").unlink()
    make, words = WITHOUT_CONFIG[kind]
    make(folder)
    refused(folder, "no weights found: this is", *words)
    assert hub.resolve(folder, tensors=False) == folder  # to explain and plan a config is enough


def test_weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights-00001-of-00001.safetensors")
    refused(folder, "weights-00001-of-00001.safetensors", "expected is model.safetensors")


def test_an_adapter_beside_a_model_is_left_alone(folder: Path) -> None:
    adapter(folder)
    minillm.load(folder)


def test_the_cache_of_the_hub(tmp_path: Path, saved: Path) -> None:
    repo = tmp_path / "hub/models--some-org--name"
    shutil.copytree(saved, repo / "snapshots/abc123")
    for folder in (repo, repo / "snapshots"):
        refused(folder, "some-org/name", str(repo / "snapshots/abc123"))
    refused(tmp_path / "hub", "cache of the hub", "org/name")
    minillm.load(repo / "snapshots/abc123")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_a_pointer_of_git_lfs(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    refused(folder, f"{name} is a git-lfs pointer", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_to_nothing(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.symlink(folder / "blobs/none", folder / name)
    refused(folder, f"{name} is a link to a file that is not there")


def test_what_lies_beside_a_checkpoint_does_not_matter(folder: Path) -> None:
    """As in a clone that fetched one kind of weights only."""
    for name in ("consolidated.safetensors", "model-q4.gguf", "notes.json"):
        (folder / name).write_bytes(POINTER)
    os.symlink(folder / "none", folder / "pytorch_model.bin")
    minillm.load(folder)


def test_files_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "model.gguf", "damaged or not GGUF")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "a file", "give the folder")


def test_folders_with_gguf_files(folder: Path, tmp_path: Path) -> None:
    """One is the checkpoint, or the first part of one, whatever else is there but other weights; of several none is."""
    data = made.file({"general.architecture": "none"})
    (folder / "model.safetensors").unlink()
    for name in ("model-00001-of-00002.gguf", "model-00002-of-00002.gguf", "mmproj-F16.gguf"):
        (folder / name).write_bytes(data)
    assert only_gguf(folder) == folder / "model-00001-of-00002.gguf"
    refused(folder, "model-00001-of-00002.gguf")
    (folder / "model-Q8_0.gguf").write_bytes(data)
    refused(folder, "several GGUF files (model-00001-of-00002.gguf, model-Q8_0.gguf); give one of them")
    refused(folder / "model-Q8_0.gguf", "general.architecture is 'none'")


def test_another_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model runs on ids, and one line says what the files are."""
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    files("vocab.json", "merges.txt")(folder)
    minillm.load(folder)
    err = capsys.readouterr().err
    assert "merges" in err
    assert err.count("\n") == 1
