"""Folders that are no checkpoint in Hugging Face layout: what they are, and what to give or do instead.

Each function returns one clause for an error, or None where there is nothing to say.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from minillm.guard.files import is_there, read_bytes
from minillm.guard.jsonfile import read_json
from minillm.weights.checkpoint import brief, entry, find
from minillm.weights.gguf.reader import PART

POINTER = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
READ = """
    config.json generation_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json
    added_tokens.json chat_template.jinja chat_template.json model.safetensors.index.json
    pytorch_model.bin.index.json""".split()
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")
SHARDS = re.compile(r"global_step\d+|zero_to_fp32\.py|pytorch_model_fsdp.*|.*\.distcp|.*_optim_states\.pt")
LAYOUT = "give the same model in Hugging Face layout (config.json and model*.safetensors)"


def damaged(folder: Path) -> str | None:
    """Files to be read that only stand for others. What lies beside a checkpoint does not matter. Raises ValueError for
    what has the name of one and is none, a folder or a pipe."""
    if reason := _stand_ins([folder / name for name in READ]):
        return reason
    found = find(folder)
    weights = found[0] if found else [name for name in _names(folder) if name.endswith(WEIGHTS)]
    return _stand_ins([folder / name for name in weights])


def _stand_ins(files: list[Path]) -> str | None:
    if gone := [path.name for path in files if path.is_symlink() and not path.exists()]:
        return f"{brief(gone)} is a link to a file that is not there; download it again"
    if pointers := [path.name for path in files if is_there(path) and _is_pointer(path)]:
        return f"{brief(pointers)} is a git-lfs pointer and not the file itself; run `git lfs pull` in this folder"
    return None


def _is_pointer(path: Path) -> bool:
    if not len(POINTER) <= path.stat().st_size <= MAX_POINTER_BYTES:
        return False
    return read_bytes(path, MAX_POINTER_BYTES).startswith(POINTER)


def instead_of_config(folder: Path) -> str | None:
    """What a folder without a config.json is."""
    inner = [path.name for path in folder.iterdir() if path.is_dir() and (path / "config.json").is_file()]
    newest = sorted(inner, key=lambda name: (int(re.sub(r"\D", "", name) or 0), name))
    repo = folder.parent if folder.name == "snapshots" else folder
    if repo.name.startswith("models--") or (folder / "snapshots").is_dir():
        name = repo.name.removeprefix("models--").replace("--", "/", 1)
        known = f"give {name}, or" if repo.name.startswith("models--") else "give"
        return f"a repository in the hub's cache; {known} the folder of one of its snapshots ({_snapshots(repo)})"
    if any(name.startswith("models--") for name in _names(folder)):
        return "a cache of the hub; give the org/name of a repository in it"
    if newest:
        what = "the output of a training run, " if newest[-1].startswith("checkpoint-") else "a folder "
        return f"{what}whose checkpoints are folders inside it; give one of them, such as {folder / newest[-1]}"
    return instead_of_weights(folder)


def instead_of_weights(folder: Path) -> str | None:
    """What a folder without weights that can be read is."""
    if entry(folder) is not None:
        return None
    names = _names(folder)
    if "adapter_config.json" in names:
        return f"an adapter (LoRA) and no model; give its base ({_base(folder)}) as --weights, and it as --adapter"
    if "qmodel.pt" in names:
        return "HQQ (qmodel.pt), which is not read; give a GPTQ, AWQ or unquantised checkpoint of the model"
    if found := [name for name in names if name == "params.json" or name.startswith("consolidated.")]:
        return f"a part of the makers' own layout ({brief(found)}), which is params.json with consolidated.*; {LAYOUT}"
    if found := [name for name in names if SHARDS.fullmatch(name)]:
        join = "run zero_to_fp32.py (DeepSpeed)" if any("zero" in name or "global" in name for name in found) else ""
        join = join or "join them (FSDP: accelerate merge-weights)"
        return f"the shards of a training run ({brief(found)}); {join} and give what it writes"
    if found := [name for name in names if name.endswith(WEIGHTS)]:
        return f"its weights are {brief(found)}; expected is model.safetensors, or an index with its shards"
    return None


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file, or the first part of the one in parts, of a folder without other weights; those that read images
    beside it do not count. Raises ValueError where there are several."""
    if entry(folder) is not None:
        return None
    found = [name for name in _names(folder) if name.endswith(".gguf") and "mmproj" not in name.lower()]
    found = [name for name in found if not (part := PART.fullmatch(name)) or int(part[2]) == 1]
    if len(found) > 1:
        raise ValueError(f"{folder}: several GGUF files ({brief(found)}); give one of them")
    return folder / found[0] if found else None


def instead_of_tokenizer(folder: Path) -> str | None:
    """What a folder has in place of a tokenizer.json or tokenizer.model."""
    if not folder.is_dir():
        return None
    if any(is_there(folder / name) for name in ("tokenizer.json", "tokenizer.model")):
        return None
    names = _names(folder)
    if {"vocab.json", "merges.txt"} <= set(names):
        return (
            "vocab.json and merges.txt are not read, so texts are not: make a tokenizer.json of them "
            "(transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)), or give token ids"
        )
    return None


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _snapshots(repo: Path) -> str:
    places = repo / "snapshots"
    return brief(sorted(str(path) for path in places.iterdir()), 2) if places.is_dir() else "none is there"


def _base(folder: Path) -> str:
    with contextlib.suppress(ValueError, OSError):
        if isinstance(base := read_json(folder / "adapter_config.json").get("base_model_name_or_path"), str):
            return base
    return "not named in adapter_config.json"
