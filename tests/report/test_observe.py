"""Looking changes nothing, and what is seen is what was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import minillm
from minillm.report import observe, page
from tests.helpers import tiny


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_oss", "deepseek_v3", "mistral-window"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = tmp_path_factory.mktemp("observed")
    tiny.save(folder, *tiny.ROWS[request.param])
    return minillm.load(folder, kernels="reference").model


@torch.no_grad()
def test_attention_weights_make_what_the_op_made(model: torch.nn.Module) -> None:
    tokens, before = tiny.tokens(97, 2, 20), [getattr(module, "ops", None) for module in model.modules()]
    with observe.ops(model, "attention") as calls:
        seen = model(tokens)
    assert torch.equal(seen, model(tokens))
    assert [getattr(module, "ops", None) for module in model.modules()] == before
    assert [call.module for call in calls] == [f"layers.{i}.attention" for i in range(len(model.layers))]
    for call in calls:
        weights = observe.attention_weights(*call.given, **call.options)
        _, _, v, *_ = call.given
        values = v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)
        # fp32 sums of up to 20 products of size up to 5
        assert (weights @ values - call.result).abs().max() <= 2e-5
        assert (weights.triu(1) == 0).all()


@torch.no_grad()
def test_modules_are_seen(model: torch.nn.Module) -> None:
    names = ["layers.1.attention", "layers.1.ffn", "layers.1"]
    with observe.modules(model, names) as found:
        model(tiny.tokens(97, 1, 9))
    assert set(found) == set(names)
    assert all(call.given[0].shape == call.result.shape == (1, 9, 48) for call in found.values())


def test_a_page_keeps_its_data_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    page.write(path, "a <b>", "<p>text</p>", data={"x": "</script><!--"})
    text = path.read_text()
    assert "<title>a &lt;b&gt;</title>" in text
    assert text.count("</script>") == 1
    assert "<!--" not in text
    with pytest.raises(ValueError, match="a page is a"):
        page.check(tmp_path / "page.txt")
    with pytest.raises(ValueError, match="there is no folder"):
        page.check(tmp_path / "none/page.html")
