"""Checkpoint files: every layout loads the same; what is damaged, hostile or incomplete is refused before it costs."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.ops.device import is_fast
from minillm.report.examine import explain
from minillm.weights.checkpoint import Checkpoint
from tests.helpers import tiny
from tests.helpers.tiny import refused


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, changed: dict[str, torch.Tensor]) -> None:
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path, parts: int = 3, stem: str = "model", suffix: str = "safetensors") -> dict[str, str]:
    """Replace the single file by shards and an index."""
    named, located = tensors(folder), {}
    (folder / "model.safetensors").unlink()
    for part in range(parts):
        file = f"{stem}-{part + 1:05d}-of-{parts:05d}.{suffix}"
        piece = dict(list(named.items())[part::parts])
        located.update(dict.fromkeys(piece, file))
        if suffix == "bin":
            torch.save(piece, folder / file)
        else:
            save_file(piece, folder / file)
    index = {"metadata": {}, "weight_map": located}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return located


def logits(folder: Path) -> torch.Tensor:
    return minillm.load(folder).model(tiny.tokens(97, 1, 9))


@pytest.mark.parametrize("layout", ["shards", "bin", "bin shards", "old bin", "beside others"])
def test_every_layout_loads_the_same(saved: Path, folder: Path, layout: str) -> None:
    expected, named = logits(saved), tensors(folder)
    if layout == "shards":
        shard(folder)
    elif layout == "bin shards":
        shard(folder, stem="pytorch_model", suffix="bin")
    elif layout == "beside others":  # files that are not part of the model
        save_file({"other": torch.zeros(2)}, folder / "consolidated.safetensors")
        save_file({"other": torch.zeros(2)}, folder / "adapter_model.safetensors")
    else:
        (folder / "model.safetensors").unlink()
        zipped = layout == "bin"
        torch.save(named, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits(folder), expected)


def test_dtype_is_the_stored_one_or_the_asked_one(folder: Path) -> None:
    rewrite(folder, {name: tensor.bfloat16() for name, tensor in tensors(folder).items()})
    fast = torch.bfloat16 if is_fast(torch.bfloat16, torch.device("cpu")) else torch.float32
    for stated in ("bfloat16", "torch.bfloat16", "auto", ...):  # a config that is silent leaves it to the tensors
        tiny.edit_config(folder, dtype=stated)
        assert minillm.load(folder, kernels="reference").model.norm.weight.dtype == fast
    tiny.edit_config(folder, dtype="float32")
    assert minillm.load(folder).model.norm.weight.dtype == torch.float32
    assert minillm.load(folder, dtype="float32").model.norm.weight.dtype == torch.float32
    assert minillm.load(folder, dtype=torch.float16, kernels="reference").model.norm.weight.dtype == torch.float16


def test_early_exports_store_frequencies_and_tied_heads(folder: Path) -> None:
    """Dropped knowingly, and explain says so; the head because it is the embedding (test_names.py has another)."""
    named = tensors(folder)
    del named["lm_head.weight"]
    tiny.edit_config(folder, tie_word_embeddings=True)
    rewrite(folder, named)
    expected = logits(folder)
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for i in range(3)}
    rewrite(folder, {**named, **extra, "lm_head.weight": named["model.embed_tokens.weight"].clone()})
    assert torch.equal(logits(folder), expected)
    assert sorted(explain(folder)["dropped_tensors"]) == sorted([*extra, "lm_head.weight"])


def test_missing_extra_and_misshapen_tensors_are_all_listed(folder: Path) -> None:
    named = tensors(folder)
    named["model.layers.0.mlp.extra.weight"] = torch.zeros(1)
    named["model.layers.7.input_layernorm.weight"] = torch.zeros(48)
    del named["model.norm.weight"], named["model.layers.1.self_attn.k_proj.weight"]
    named["model.layers.2.mlp.down_proj.weight"] = torch.zeros(48, 79)
    rewrite(folder, named)
    refused(
        folder,
        "2 tensors no rule claims: model.layers.0.mlp.extra.weight, model.layers.7.input_layernorm.weight",
        "2 parameters no tensor fills: layers.1.attention.qkv.weight[k], norm.weight",
        "model.layers.2.mlp.down_proj.weight is [48, 79], the config needs [48, 80]",
    )


def test_a_type_that_no_plain_checkpoint_has(folder: Path) -> None:
    named = tensors(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(folder, {**named, name: named[name].to(torch.int8)})
    refused(folder, f"{name} is I8", "is it quantised?")


def test_a_missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "not there: model-00002-of-00003.safetensors")


def test_an_index_that_promises_too_much(folder: Path) -> None:
    located = shard(folder)
    located["model.layers.0.more"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    refused(folder, "promises tensors that their files lack: model.layers.0.more")


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"])
def test_an_index_that_leaves_the_folder(folder: Path, file: str) -> None:
    located = shard(folder)
    located["model.norm.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    refused(folder, "model.norm.weight", "not a plain name in this folder")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000, "\xff"])
def test_an_index_that_is_none(folder: Path, content: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    refused(folder, "not an index")


def header(entries: dict, size: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 150_000_000) + b" " * 64,
        header({"a": F32}),  # no data behind the header
        header({"a": F32}, size=10),
        header({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}) + b"\0" * 12,
        header({"a": {**F32, "data_offsets": [8, 16]}}) + b"\0" * 16,
        header({"a": {**F32, "shape": [2**40, 2**40]}}) + b"\0" * 8,
        header({"a": {**F32, "dtype": "X9"}}) + b"\0" * 8,
    ],
    ids=["empty", "short", "huge", "oversized", "truncated", "cut", "overlap", "hole", "wrap", "type"],
)
def test_damaged_safetensors(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    refused(folder, "model.safetensors: damaged or not safetensors")


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "damaged or not safetensors")


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_executed(folder: Path, tmp_path: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(tmp_path / "owned")}, folder / "pytorch_model.bin",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    refused(folder, "pytorch_model.bin: not a plain file of tensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    refused(folder, "pytorch_model.bin: not a plain file of tensors")
    assert not (tmp_path / "owned").exists()


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """One value that claims the whole shape: read as bytes it would reach far beyond its storage."""
    return torch.zeros(1).expand(tensor.numel()).view(tensor.shape) if tensor.dim() == 1 else torch.zeros(1, 1).expand(
        tensor.shape
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (expanded, "repeats its values"),
        (lambda tensor: tensor.to_sparse(), "_rebuild_sparse_tensor', which is no part of a plain tensor"),
        (lambda tensor: tensor.to("meta"), "_rebuild_meta_tensor_no_storage', which is no part of a plain tensor"),
        (lambda tensor: [1, 2], "'model.layers.0.mlp.down_proj.weight' is a list"),
        (lambda tensor: tensor.to(torch.complex64).conj(), "hooks or marks"),
    ],
    ids=["expanded", "sparse", "meta", "list", "marked"],
)
def test_a_bin_of_odd_tensors(folder: Path, make: Callable, message: str) -> None:
    named = tensors(folder)
    (folder / "model.safetensors").unlink()
    name = "model.layers.0.mlp.down_proj.weight"
    torch.save({**named, name: make(named[name])}, folder / "pytorch_model.bin")
    refused(folder, message)
    torch.save({**named, 5: named[name]}, folder / "pytorch_model.bin")
    refused(folder, "the key 5, which is no name")


def test_a_damaged_bin_is_always_a_clear_error(folder: Path) -> None:
    """Bytes flipped all over the pickle: whatever its reader stumbles over."""
    torch.save(
        dict(list(tensors(folder).items())[:2]), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    (folder / "model.safetensors").unlink()
    data = (folder / "pytorch_model.bin").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(600, (120,), generator=generator).tolist():
        flipped = bytes([*data[:at], data[at] ^ 0x55, *data[at + 1 :]])
        (folder / "pytorch_model.bin").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"\w"):
            minillm.load(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights found")


def test_headers_are_read_without_data(saved: Path) -> None:
    info = Checkpoint(saved).info
    assert info["model.norm.weight"].shape == (48,)
    assert info["model.norm.weight"].dtype == "F32"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_of_views(folder: Path, saved: Path, zipped: bool) -> None:
    """Transposed, and parts of a larger tensor, as transformers reads them too."""
    named = {name: each.t().contiguous().t() if each.dim() == 2 else each for name, each in tensors(folder).items()}
    both = torch.stack((named["model.norm.weight"], torch.zeros(48)), dim=1)
    named["model.norm.weight"] = both[:, 0]
    assert not any(each.is_contiguous() for each in named.values() if each.dim() == 2)
    assert not named["model.norm.weight"].is_contiguous()
    (folder / "model.safetensors").unlink()
    torch.save(named, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits(folder), logits(saved))
    theirs = tiny.logits(tiny.reference(folder), tiny.tokens(97, 1, 9)) if zipped else logits(saved)
    assert (logits(folder) - theirs).abs().max() <= 2e-5
