"""Equal layers are counted, not walked: every figure is what walking gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm import families
from minillm.model import outline as outlines
from minillm.plan import budget
from minillm.plan.budget import Question
from minillm.report import examine
from tests.helpers.rows import BASE, ROWS

# What a row leaves to its oracle.
THETAS = {"rope_theta": 1e4, "rope_local_theta": 1e3}
UNWRITTEN = {"plamo3": {"sliding_window_pattern": 4, "tie_word_embeddings": True, **THETAS}}
MANY, SOME = 112, 12  # with numbers of one, two and three digits, and of one and two


def runs(count: int) -> dict[str, Any]:
    """Of what gives kinds of layers as runs."""
    return {"gpt_neo": {"num_layers": count, "attention_types": [[["global", "local"], count // 2]]}}


def long(row: str, layers: int = MANY) -> dict[str, Any]:
    """A row's config with many layers, of the kinds that it has in turn."""
    family, overrides = ROWS[row]
    values = {"model_type": family, "rms_norm_eps": 1e-5, **BASE, **UNWRITTEN.get(row, {}), **overrides}
    count = values["num_hidden_layers"]
    for key, value in values.items():
        if isinstance(value, list) and len(value) == count and key not in ("mlp_multipliers", "ssm_multipliers"):
            values[key] = (value * layers)[:layers]
    return {**values, "num_hidden_layers": layers, **runs(layers).get(row, {})}


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """What is said of a config, and what is said where each layer is walked."""

    def made(values: dict[str, Any], say: Callable[..., Any] = budget.budget, **asked: Any) -> list[Any]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(values))
        given = (path, Question(**asked)) if say is budget.budget else (path,)
        short = say(*given)
        with monkeypatch.context() as patch:
            for module in (budget, examine):
                patch.setattr(module, "outline", walked)
            return [short, say(*given)]

    return made


def walked(decoder: Any, dtype: torch.dtype, whole: bool = False) -> outlines.Outline:
    return outlines.outline(decoder, dtype, whole=True)


@pytest.mark.parametrize("row", ROWS)
def test_every_figure_is_that_of_walking(row: str, both: Callable[..., list[Any]]) -> None:
    short, whole = both(long(row, SOME), quantize="int4", batch=7, dtype="float16")
    assert short == whole


@pytest.mark.parametrize("row", ["llama", "deepseek_v3", "gemma4-experts", "nemotron_h"])
def test_as_it_is_stored_and_explained(row: str, both: Callable[..., list[Any]]) -> None:
    short, whole = both(long(row, SOME))
    assert short == whole
    short, whole = both(long(row, SOME), examine.explain)
    assert short == whole


QUANTISED = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "one layer spared": {
        "quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["model.layers.101"],
    },
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16},
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("row", ["llama", "mixtral", "deepseek_v3"])
def test_quantised_too(kind: str, row: str, both: Callable[..., list[Any]]) -> None:
    """And where a config lists the modules that are plain, one by one."""
    short, whole = both({**long(row), "quantization_config": QUANTISED[kind]})
    assert short == whole


def test_layers_of_prediction_are_as_the_last(both: Callable[..., list[Any]]) -> None:
    """Which is not as the first."""
    values = {**long("deepseek_v3"), "num_nextn_predict_layers": 2}
    short, whole = both(values)
    assert short == whole
    assert short["checkpoint"]["left_out"]["multi-token prediction"] > 0
    sketch = outlines.outline(families.resolve(values)[0], torch.bfloat16)
    assert sketch.places == [[0], [*range(1, MANY)]]
    assert sketch.last == 1


def test_equal_layers_stand_once() -> None:
    """Some hundred tensors, of 4096 layers with as many experts as a config may have."""
    values = {**long("mixtral"), "num_hidden_layers": 4096, "num_local_experts": 64}
    sketch = outlines.outline(families.resolve(values)[0], torch.bfloat16)
    assert [len(each) for each in sketch.places] == [4096]
    assert len(sketch.model.destinations()) < 250
    assert sketch.total({"layers.0.attention_norm.weight": 2, "norm.weight": 3}) == 2 * 4096 + 3
    assert sketch.last == 0
