"""Towers, places and whole models against transformers, with every parameter random; no recorded case is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from tests.media import models
from tests.media.recorded import run

NEAR = 2e-5  # as for text: what fp32 rounds otherwise, measured 4e-6 at most


@pytest.fixture(params=models.MODELS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Any]:
    return request.param, tmp_path, models.build(tmp_path, request.param, models.SEEDS.get(request.param, 0))


def sizes(name: str) -> list[tuple[int, int]]:
    return [(24, 24)] * 2 if name == "gemma3" else models.SIZES


@torch.no_grad()
def test_a_tower(both: tuple[str, Path, Any]) -> None:
    name, folder, theirs = both
    media, tower = models.ours(folder)
    pictures, found = models.seen(media, sizes(name))
    made = theirs.model.get_image_features(**models.inputs(name, media, pictures, found))
    wanted = made.pooler_output
    wanted = torch.cat([each.flatten(0, -2) for each in wanted]) if not isinstance(wanted, torch.Tensor) else wanted
    read = [tower.of_picture(each.values, each.grid) for each in found if each.grid]
    ours = torch.cat([each.embeddings for each in read])
    assert (ours - wanted.flatten(0, -2)).abs().max() <= NEAR
    deep = getattr(made, "deepstack_features", None) or ()
    assert len(deep) == len(read[0].deep)
    for index, each in enumerate(deep):
        their = torch.cat(each) if isinstance(each, tuple) else each
        assert (torch.cat([one.deep[index] for one in read]) - their).abs().max() <= NEAR


@torch.no_grad()
@pytest.mark.parametrize("budget", [2048, 5])
def test_a_prompt_with_two_pictures(both: tuple[str, Path, Any], budget: int) -> None:
    """Logits of the prompt, whole and in pieces, and greedy text: the text that follows has places of its own."""
    name, folder, theirs = both
    media, tower = models.ours(folder)
    pictures, found = models.seen(media, sizes(name))
    text = [tokens.tolist() for tokens in models.tiny.tokens(90, 3, 6)]
    ids = text[0] + [models.TOKEN] * found[0].count + text[1] + [models.TOKEN] * found[1].count + text[2]
    at = [index for index, token in enumerate(ids) if token == models.TOKEN]
    inserted = models.reader(media, tower).inserted(found, at, len(ids))
    row = Completion(ids, Sampling(temperature=0), 8, inserted=inserted)
    llm = minillm.load(folder)
    (logits,) = run(llm, [row], budget)
    kinds = torch.tensor([[int(token == models.TOKEN) for token in ids]])
    given = models.inputs(name, media, pictures, found)
    kind = {} if media.sizing == "edge" else {"token_type_ids" if name == "gemma3" else "mm_token_type_ids": kinds}
    kind |= models.masks(theirs, name, kinds)
    made = theirs(input_ids=torch.tensor([ids]), **given, **kind)
    assert (logits - made.logits[0]).abs().max() <= NEAR
    known = torch.tensor([ids])
    for token in row.token_ids:
        kinds = torch.tensor([[int(at < len(ids) and each == models.TOKEN) for at, each in enumerate(known[0])]])
        kind = {**dict.fromkeys(kind, kinds), **models.masks(theirs, name, kinds)}
        assert token == int(theirs(input_ids=known, **given, **kind).logits[0, -1].argmax())
        known = torch.cat((known, torch.tensor([[token]])), dim=1)
        if token == models.TOKEN:  # which transformers takes for a place of the pictures, and refuses
            break


@torch.no_grad()
def test_bf16_rounds_no_worse(both: tuple[str, Path, Any]) -> None:
    """The error of a tower in bf16 is at most 1.5 times that of transformers' own."""
    name, folder, theirs = both
    media, _ = models.ours(folder)
    _, rounded = models.ours(folder, torch.bfloat16)
    pictures, found = models.seen(media, sizes(name))
    given = models.inputs(name, media, pictures, found)

    def of(made: Any) -> torch.Tensor:
        found = made.pooler_output
        return (
            found if isinstance(found, torch.Tensor) else torch.cat([each.flatten(0, -2) for each in found])
        ).float()

    wanted = of(theirs.model.get_image_features(**given)).flatten(0, -2)
    read = [rounded.of_picture(each.values, each.grid).embeddings.float() for each in found if each.grid]
    theirs = theirs.to(torch.bfloat16)
    given["pixel_values"] = given["pixel_values"].to(torch.bfloat16)
    errors = [
        (each - wanted).pow(2).mean().sqrt()
        for each in (torch.cat(read), of(theirs.model.get_image_features(**given)).flatten(0, -2))
    ]
    assert errors[0] <= 1.5 * errors[1]
