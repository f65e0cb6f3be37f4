"""What tokens look at in a picture: weights against transformers' own, and over the picture where they belong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.lens import forward, over, seen
from minillm.lens.__main__ import main
from tests.conftest import shared
from tests.lens.test_page import dumped
from tests.media import models
from tests.media.recorded import expected, loaded, picture
from tests.media.test_parity import sizes

NEAR = 2e-5


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "mistral3"])
@torch.no_grad()
def test_weights_are_the_references(name: str, tmp_path: Path) -> None:
    """Eager attention of transformers over two pictures, every layer and head."""
    import minillm

    theirs = models.build(tmp_path, name)
    media, made = models.ours(tmp_path)
    pictures, found = models.seen(media, sizes(name))
    ids = [1, 2, *[models.TOKEN] * found[0].count, 3, *[models.TOKEN] * found[1].count, 4, 5]
    at = [index for index, token in enumerate(ids) if token == models.TOKEN]
    inserted = models.reader(media, made).inserted(found, at, len(ids))
    ours = forward.look(minillm.load(tmp_path).model, ids, inserted)
    kinds = torch.tensor([[int(token == models.TOKEN) for token in ids]])
    kind = {} if name == "mistral3" else {"token_type_ids" if name == "gemma3" else "mm_token_type_ids": kinds}
    given = models.inputs(name, media, pictures, found)
    wanted = theirs(input_ids=torch.tensor([ids]), **given, **kind, output_attentions=True, output_hidden_states=True)
    for mine, other in zip(ours.attention, wanted.attentions, strict=True):
        assert (mine - other[0]).abs().max() <= NEAR
    assert (ours.residual[0] - wanted.hidden_states[0][0]).abs().max() <= NEAR
    one = seen.Shown(
        "a", torch.zeros(4, 4, 3, dtype=torch.uint8).numpy(), found[1].shape, inserted.at[-found[1].count :]
    )
    heat = seen.heat(ours.attention[-1], one, len(ids) - 1)
    assert torch.equal(heat.flatten(1), ours.attention[-1][:, -1, len(ids) - 2 - found[1].count : -2])
    assert heat.shape[1:] == found[1].shape


def asked(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"image": [str(picture())], "max_pixels": None, "new_tokens": None, **more})


def test_an_answer_is_looked_at() -> None:
    """What follows greedily is appended, and a token of it is predicted in the pass as it was when it was written."""
    llm = loaded("qwen2_5_vl")
    text = "Once upon a time there was a little girl named Lily."
    ids, inserted, (shown,) = seen.prompt(llm, text, asked(new_tokens=6))
    wanted = expected("qwen2_5_vl", "image")
    assert ids == [*wanted["input_ids"].tolist(), *wanted["greedy_ids"].tolist()[:6]]
    found = forward.look(llm.model, ids, inserted)
    assert llm.model.logits(found.residual[-1][None])[0].argmax(-1)[-7:-1].tolist() == ids[-6:]
    assert shown.grid[0] * shown.grid[1] == len(shown.at)
    assert shown.levels.shape[1] > shown.levels.shape[0]


def test_rows_that_end_by_a_token() -> None:
    """Ends of rows stand between the cells of a picture and are none."""
    llm = loaded("mistral3")
    ids, _, (shown,) = seen.prompt(llm, "Lily", asked())
    assert {ids[at] for at in shown.at.tolist()} == llm.prompts.reader.tokens & {*ids}
    steps = shown.at.view(shown.grid).diff(dim=1).unique()
    assert steps.tolist() == [1]
    assert shown.at.view(shown.grid)[:, 0].diff().unique().tolist() == [shown.grid[1] + 1]


def test_bright_where_the_weight_is(tmp_path: Path) -> None:
    """A picture of one panel: the cell with all of the weight is drawn where it lies, and no other."""
    llm = loaded("gemma3")
    ids, _, (shown,) = seen.prompt(llm, "Lily", asked())
    rows, columns = shown.grid
    weights = torch.zeros(1, len(ids), len(ids))
    weights[0, -1, shown.at[1 * columns + 2]] = 0.5
    report = {"tokens": ids, "texts": {str(each): "x" for each in ids}}
    said = list(over.lines(report, [shown], [weights], len(ids) - 1))
    assert said[2] == "layer 0: 50.0 % of its weight, 50.00 % in the largest cell"
    assert said[3:] == ["  " + " " * columns if row != 1 else "    █" + " " * (columns - 3) for row in range(rows)]
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for path, cell in zip(paths, (1 * columns + 2, 0), strict=True):
        weights = torch.zeros(1, len(ids), len(ids))
        weights[0, -1, shown.at[cell]] = 0.5
        over.draw(path, report, [shown], [weights], len(ids) - 1)
    one, other = (torch.from_numpy(np.array(Image.open(path).convert("L"), np.int64)).flatten() for path in paths)
    assert one.shape == other.shape
    width = Image.open(paths[0]).width
    lit, dark = ((one - other > 60).nonzero()[:, 0], (other - one > 60).nonzero()[:, 0])
    assert (lit % width).float().mean() > (dark % width).float().mean()
    assert (lit // width).float().mean() > (dark // width).float().mean()


def test_a_page(tmp_path: Path) -> None:
    given = ["--weights", str(shared("media/gemma3")), "--prompt", "Lily", "--image", str(picture())]
    path = tmp_path / "a.html"
    assert main([*given, "--html", str(path)]) == 0
    text = dumped(path, "#at=1&layer=2", tmp_path / "profile")
    assert "landscape.png: 0.0 % of the weight of" in text  # what stands before it sees nothing of it
    assert "at position 1, in layer 2, head 0" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--weights", str(shared("media/qwen3_vl")), "--prompt", "Lily", "--image", str(picture())]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (shown,) = found["pictures"]
    count = len(found["tokens"])
    assert shown["rows"] * shown["columns"] == len(shown["at"])
    assert all(0 <= each <= 1.00001 for layer in shown["shares"] for each in layer)
    assert [len(layer) for layer in shown["shares"]] == [count] * len(shown["shares"])
    assert main([*given, "--layer", "1", "--head", "2", "--token", "-2"]) == 0
    out = capsys.readouterr().out
    assert f"at position {count - 2} looks at" in out
    assert "layer 1, head 2: " in out
    assert main([*given, "--plot", str(tmp_path / "a.png"), "--new-tokens", "1"]) == 0
    assert Image.open(tmp_path / "a.png").width > 400


REFUSED = {
    "--token is 999": ["--token", "999"],
    "--new-tokens is 999": ["--new-tokens", "999"],
    "--layer is 9": ["--layer", "9"],
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_refused(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--weights", str(shared("media/qwen3_vl")), "--prompt", "Lily", "--image", str(picture())]
    assert main([*given, *REFUSED[said]]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--token", "1"], ["--show", "picture"], ["--new-tokens", "1"]], ids=str)
def test_a_picture_is_missing(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt", "Lily", *more]) == 2
    assert "goes with --image" in capsys.readouterr().err


def test_a_row_is_no_request() -> None:
    """A prompt without pictures goes through as before."""
    llm = loaded("qwen2_5_vl")
    row = Completion([1, 2, 3], Sampling(temperature=0), 1)
    plain = forward.look(llm.model, row.prompt)
    assert torch.equal(plain.residual[0], llm.model.embed(torch.tensor([row.prompt]))[0])
