"""Parameters of published models as their authors count them, of families of which no published file is at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minillm.families import resolve
from minillm.model.costs import active_values
from minillm.model.outline import outline
from minillm.spec import Decoder
from tests.helpers.published import SIZES


def parameters(spec: Decoder, active: bool = False) -> int:
    sketch = outline(spec, torch.bfloat16, whole=False)
    named = {name: each.numel() for name, each in sketch.model.named_parameters()}
    return sketch.total(active_values(sketch.model) if active else named)


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name: str) -> None:
    family, values, published = SIZES[name]
    spec, _, config = resolve({"model_type": family, **values})
    assert config.unread == []
    stated(parameters(spec), published)


def stated(count: int, published: int | str) -> None:
    """Exact, or rounded as `published` is: down too, which authors do."""
    if isinstance(published, int):
        assert count == published
    else:
        digit = 10.0 ** -len(published.partition(".")[2])
        assert -digit / 2 <= count / 1e9 - float(published) < digit


@pytest.mark.parametrize(
    ("name", "active"),
    [("Tanuki-8x8B", "13"), ("Qwen1.5-MoE-A2.7B", "2.7"), ("OLMoE-1B-7B-0924", "1.3"), ("dots.llm1.base", "14"),
     ("deepseek-moe-16b-base", "2.8"), ("Solar-Open-100B", "12"), ("Hy3", "21"), ("ERNIE-4.5-21B-A3B", "3")],
)  # fmt: skip
def test_active_parameters(name: str, active: str) -> None:
    family, values, _ = SIZES[name]
    stated(parameters(resolve({"model_type": family, **values})[0], active=True), active)


FEWER = {"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10}


@pytest.mark.parametrize(("values", "published"), [({}, "6.87"), (FEWER, "4.46")], ids=["E4B", "E2B"])
def test_with_what_nothing_reads(values: dict[str, Any], published: str) -> None:
    """Gemma 3n: layers that use the keys and values of others have their own in the files, which count there."""
    spec, _, _ = resolve({"model_type": "gemma3n_text", **values})
    unused = 0
    for each in spec.attentions:
        if each.kv.layer is not None:
            width = each.num_kv_heads * each.head_dim  # type: ignore[union-attr]
            unused += 2 * width * spec.hidden_size + each.head_dim  # type: ignore[union-attr]
    stated(parameters(spec) + unused, published)
