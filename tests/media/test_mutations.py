"""The test of the tests: a mistake of each kind that has been made elsewhere moves what was recorded by more than the
tests let pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.media import sources
from minillm.media.prompts import Reader
from minillm.model.tower import turning
from minillm.model.tower.tower import Tower
from tests.media.recorded import expected, loaded, messages, outputs, run

NEAR = 1e-4
Change = Callable[[Any], Any]


def layers(**changes: Any) -> Change:
    return lambda encoder: replace(encoder, layers=tuple(replace(each, **changes) for each in encoder.layers))


def ffn(activation: str) -> Change:
    return lambda encoder: replace(
        encoder, layers=tuple(replace(each, ffn=replace(each.ffn, activation=activation)) for each in encoder.layers)
    )


def projected(**changes: Any) -> Change:
    return lambda encoder: replace(encoder, projector=replace(encoder.projector, **changes))


# folder -> mistakes in the tower's spec
OF_TOWERS: list[tuple[str, str, Change]] = [
    ("qwen2_vl", "exact GELU for the quick one", ffn("gelu")),
    ("qwen2_5_vl", "no windows", lambda encoder: replace(encoder, window=None)),
    ("qwen2_5_vl", "windows everywhere", lambda encoder: replace(encoder, whole=())),
    ("qwen2_5_vl", "windows of another size", lambda encoder: replace(encoder, window=encoder.window + 1)),
    ("qwen2_5_vl", "columns at other rates", lambda encoder: replace(encoder, columns="between")),
    ("qwen3_vl", "exact GELU for tanh", ffn("gelu")),
    ("qwen3_vl", "columns at other rates", lambda encoder: replace(encoder, columns="between")),
    ("qwen3_vl", "taps in another order", lambda encoder: replace(encoder, taps=encoder.taps[::-1])),
    ("qwen3_vl", "taps of other layers", lambda encoder: replace(encoder, taps=(1, 2))),
    ("gemma3", "exact GELU for tanh", ffn("gelu")),
    ("gemma3", "pooled behind the norm", projected(norm_of="each")),
    ("gemma3", "no offset of the norm", lambda e: projected(norm=replace(e.projector.norm, offset=0.0))(e)),
    ("mistral3", "columns at the rates of rows", lambda encoder: replace(encoder, columns="same")),
    ("mistral3", "tanh for exact GELU", projected(activation="relu")),
]  # fmt: skip


def named(given: object) -> str:
    return given if isinstance(given, str) else "-"


@pytest.mark.parametrize(("name", "mistake", "change"), OF_TOWERS, ids=named)
def test_mistakes_in_a_tower(name: str, mistake: str, change: Change) -> None:
    reader = loaded(name).prompts.reader
    other = Tower(change(reader.tower.spec))
    missing, _ = other.load_state_dict(reader.tower.state_dict(), strict=False)
    assert not missing
    _, found = sources.taken(messages(name, "behind"))
    (seen,) = (reader.seen(each) for each in found)
    assert seen.grid is not None
    read = other.of_picture(seen.values, seen.grid)
    wanted = expected(name, "behind")
    errors = [(read.embeddings - wanted["image_features"].flatten(0, -2)).abs().max()]
    errors += [(each - wanted[f"image_deepstack.{at}"]).abs().max() for at, each in enumerate(read.deep)]
    assert max(errors) > 2 * NEAR


def test_a_table_without_aligned_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = loaded("qwen3_vl").prompts.reader
    _, found = sources.taken(messages("qwen3_vl", "behind"))
    seen = reader.seen(found[0])

    def half_pixel(rows: torch.Tensor, table: Any, places: torch.Tensor) -> torch.Tensor:
        size = (places.amax(0) + 1).tolist()
        square = rows.view(1, table.side, table.side, -1).permute(0, 3, 1, 2)
        made = torch.nn.functional.interpolate(square, size, mode="bilinear")[0]
        return made[:, places[:, 0], places[:, 1]].T

    monkeypatch.setattr(turning, "learned", half_pixel)
    assert seen.grid is not None
    read = reader.tower.of_picture(seen.values, seen.grid)
    assert (read.embeddings - expected("qwen3_vl", "behind")["image_features"]).abs().max() > 2 * NEAR


def text_places(inserted: Any) -> Any:
    count = len(inserted.places)
    return replace(inserted, places=torch.arange(count)[:, None].expand(inserted.places.shape).contiguous(), shift=0)


def swapped(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple({0: 0, 1: 2, 2: 1}[axis] for axis in axes)


IN_PROMPTS: list[tuple[str, str, Change]] = [
    ("qwen2_5_vl", "one axis", text_places),
    ("qwen2_5_vl", "no shift", lambda inserted: replace(inserted, shift=0)),
    ("qwen3_vl", "no shift", lambda inserted: replace(inserted, shift=0)),
    ("qwen3_vl", "nothing deep", lambda inserted: replace(inserted, deep=())),
    ("qwen3_vl", "deep in another order", lambda inserted: replace(inserted, deep=inserted.deep[::-1])),
    ("gemma3", "a picture that sees the past alone", lambda inserted: replace(inserted, joint=False)),
    ("gemma3", "scaled embeddings", lambda inserted: replace(inserted, embeddings=inserted.embeddings * 8)),
    ("mistral3", "placeholders as they are", lambda inserted: None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "mistake", "change"), IN_PROMPTS, ids=named)
def test_mistakes_in_a_prompt(name: str, mistake: str, change: Change) -> None:
    llm, wanted = loaded(name), expected(name, "image")
    prompt = llm.prompts.conversation(messages(name, "image"))
    row = Completion(prompt.ids, Sampling(temperature=0), 24, inserted=change(prompt.inserted))
    (logits,) = run(llm, [row])
    wrong = (logits - wanted["logits"]).abs().max() > 2 * NEAR
    assert wrong or row.token_ids != wanted["greedy_ids"].tolist()
    assert wrong != (mistake == "no shift")  # which only what follows shows


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_swapped_axes(name: str) -> None:
    llm, wanted = loaded(name), expected(name, "behind")
    right = llm.prompts.reader
    other = Reader(
        replace(right.media, axes=swapped(right.media.axes or ())), right.tower, right.settings, right.tokenizer, 1024
    )
    _, found = sources.taken(messages(name, "behind"))
    prompt = other.prompt(outputs(name)[0]["behind"]["prompt"], found, special=False)
    row = Completion(prompt.ids, Sampling(temperature=0), 1, inserted=prompt.inserted)
    (logits,) = run(llm, [row])
    assert (logits - wanted["logits"]).abs().max() > 2 * NEAR


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3"])
def test_another_filter(name: str) -> None:
    """Bilinear for bicubic."""
    reader = loaded(name).prompts.reader
    _, found = sources.taken(messages(name, "image"))
    right = reader.seen(found[0]).values
    kept, reader.settings = reader.settings, replace(reader.settings, resample=2)  # type: ignore[type-var]
    try:
        assert (reader.seen(found[0]).values - right).abs().max() > 1e-2
    finally:
        reader.settings = kept
