"""Which patches of a picture a token attends to: weights of attention at the positions that a picture fills, as a grid
of its rows and columns. A cell is what became one token, so a block of patches where the projector joins some.

Shapes: H heads, T positions, R rows and C columns of a picture's tokens.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from minillm.engine.completion import Timings
from minillm.engine.inserted import Inserted
from minillm.llm import LLM
from minillm.media import pictures, sources

SIDE = 512  # pixels of what is shown of a picture, at most
MOST_NEW = 256  # tokens


@dataclass(frozen=True)
class Shown:
    """A picture of a prompt: uint8 `[height, width, 3]`, its grid of tokens, and their positions, int64 `[R C]`."""

    name: str
    levels: NDArray[np.uint8]
    grid: tuple[int, int]
    at: Tensor


def prompt(llm: LLM, text: str, arguments: argparse.Namespace) -> tuple[list[int], Inserted, list[Shown]]:
    """The ids of a text with pictures, and of what a greedy answer adds; what stands among them, and the pictures.
    Raises ValueError for what is no picture, and for a model that sees none."""
    if not 0 <= (count := arguments.new_tokens or 0) <= MOST_NEW:
        raise ValueError(f"--new-tokens is {count}, it must be from 0 to {MOST_NEW}")
    given: dict[str, Any] = {"images": arguments.image, "max_pixels": arguments.max_pixels}
    asked = {key: value for key, value in given.items() if value is not None}
    row = llm.completion(text, **asked, max_new_tokens=max(count, 1), temperature=0, ignore_eos=True)
    if (inserted := row.inserted) is None:
        raise ValueError("--image: nothing of it is in the prompt")
    if count:
        for _ in llm.run([row], Timings()):
            pass
    return [*row.prompt, *row.token_ids[:count]], inserted, _shown(llm, arguments, inserted)


def _shown(llm: LLM, arguments: argparse.Namespace, inserted: Inserted) -> list[Shown]:
    """The pictures, by their digests: one that is cut into crops has more of them."""
    found = []
    for path in arguments.image:
        given = sources.source("image", path, path)
        seen = llm.prompts.reader.seen(given, arguments.max_pixels)
        span = next((each for each in inserted.spans if each.digest == seen.digest), None)
        if span is None:
            raise ValueError(f"{path}: the model sees it in several pieces, which cannot be drawn over it")
        image = pictures.opened(given)
        image.thumbnail((SIDE, SIDE))
        at = inserted.at[(inserted.at >= span.first) & (inserted.at < span.last)]
        found.append(Shown(path, np.asarray(image), seen.shape, at))
    return found


def heat(weights_HTT: Tensor, shown: Shown, token: int) -> Tensor:
    """Fp32 `[H, R, C]`: what the token at a position gives to each cell of a picture."""
    return weights_HTT[:, token, shown.at].unflatten(1, shown.grid).float()


def as_data(shown: Sequence[Shown], attention: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The pictures as plain data, levels in base64, row by row; `shares` are what each position gives to one in each
    layer, the mean of heads, `[T]`, none where a layer is recurrent."""
    return [
        {"name": Path(each.name).name, "height": each.levels.shape[0], "width": each.levels.shape[1],
         "rows": each.grid[0], "columns": each.grid[1], "at": each.at.tolist(),
         "rgb": base64.b64encode(each.levels.tobytes()).decode(), "shares": [_shares(one, each) for one in attention]}
        for each in shown
    ]  # fmt: skip


def _shares(weights_HTT: Tensor, shown: Shown) -> list[float]:
    if not len(weights_HTT):
        return []
    return [round(each, 6) for each in weights_HTT[:, :, shown.at].float().sum(-1).mean(0).tolist()]
