"""A checkpoint written anew, as a folder or as a file, complete or not at all: what `quantize` and `merge` share."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm import hub
from minillm.guard.files import is_there, read_bytes
from minillm.guard.screen import note
from minillm.guard.writing import complete, new_folder, terminable
from minillm.model import held
from minillm.report.original import Original
from minillm.report.saving import write_original
from minillm.weights import ints
from minillm.weights.checkpoint import brief
from minillm.weights.gguf.mixtures import MIXTURES
from minillm.weights.gguf.reader import SUFFIX
from minillm.weights.ints import Int4, Int8
from minillm.weights.save import save_as

Progress = Callable[[int, int], None]
OUTPUT = f"a folder, or a file that ends in {SUFFIX}, that is not there yet"


def mixture(output: Path, kind: str | None) -> str | None:
    """The mixture of kinds that a GGUF file gets, None for a folder. Raises ValueError where --output and the kind that
    --quantize names do not go together."""
    is_file = output.suffix == SUFFIX
    if is_file and kind not in MIXTURES:
        raise ValueError(f"--output {output} is a GGUF file: say with --quantize in which kind ({', '.join(MIXTURES)})")
    if not is_file and kind in MIXTURES:
        raise ValueError(f"--quantize {kind} is for a GGUF file: let --output end in {SUFFIX}, or take another kind")
    return kind if is_file else None


def to_folder(output: Path, given: Original, scheme: Int8 | Int4 | None, progress: Progress) -> dict[str, Any]:
    """Write a checkpoint to a folder (`free`), its matrices as integers where there is a scheme: tensors keep their
    names, and the small files are copied. Returns the bytes before and after, and the bits per value of integers.

    Raises ValueError for small files that are links out of the checkpoint."""
    folder, section = given.folder, {} if scheme is None else {"quantization_config": ints.written(scheme)}
    key = "dtype" if "dtype" in given.values else "torch_dtype"
    said = {**given.values, key: str(given.dtype).removeprefix("torch."), **section}
    if scheme is None:
        said.pop("quantization_config", None)
    small = {name: read_bytes(own(folder / name)) for name in hub.SMALL_FILES if is_there(folder / name)}
    own(folder / "config.json")
    formats = {} if scheme is None else held.integers(given.plain, scheme)
    with new_folder(output) as partial:
        written = save_as(partial, given.checkpoint, given.kept, formats, progress)
        small["config.json"] = json.dumps(said, indent=2, ensure_ascii=False).encode()  # last: without it nothing loads
        for name, content in small.items():
            with complete(partial / name) as file:
                file.write(content)
    return {"output": str(output), "bytes_before": given.checkpoint.nbytes, **written}


def to_file(output: Path, given: Original, mixture: str, progress: Progress) -> dict[str, Any]:
    """Write a checkpoint to a GGUF file (`free`), of a mixture of kinds (`mixtures.MIXTURES`). Returns what `to_folder`
    does, and how many tensors there are of each kind. Raises ValueError for what llama.cpp would compute otherwise."""
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent}: no such folder; make it, or choose another --output")
    with terminable():
        return {"output": str(output), **write_original(output, given, mixture, progress)}


def free(path: Path) -> Path:
    """Where a folder or file shall be. Raises ValueError where something is; what a killed run has left is only
    said."""
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    if os.path.lexists(path) or not path.name:
        raise ValueError(f"{path}: is there already; remove it or choose another --output")
    if left := sorted(each.name for each in path.parent.glob(f"{glob.escape(path.name)}.*.partial")):
        note(f"{path.parent}: {brief(left)} was left by a run that was cut off; remove it")
    return path


def own(path: Path) -> Path:
    """A file of a checkpoint, or in the hub's cache, which consists of links, of its repository.

    Raises ValueError for a link to elsewhere: with it a checkpoint could have any file of this machine copied into a
    folder that is to be given away. Tensors may lie anywhere, as nothing is copied that is no tensor of the model."""
    home, real = path.parent.resolve(), path.resolve()
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        home = home.parent.parent
    if not real.is_relative_to(home):
        raise ValueError(f"{path}: a link to {real}, out of the checkpoint; put the file itself in its place")
    return path
