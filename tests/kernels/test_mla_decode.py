"""Latent attention in Triton, beyond `test_kernels.py`: the published sizes, several queries, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minillm import ops
from minillm.kernels.mla_decode import mla_decode
from minillm.ops.visibility import Visibility
from tests.helpers.attention_problems import attended
from tests.helpers.kernel_cases import exact, ulps
from tests.helpers.kernel_problems import BUDGETS
from tests.kernels.test_attention import drawn

pytestmark = pytest.mark.usefixtures("small_kernels")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_sizes(dtype: torch.dtype) -> None:
    q, latent = drawn(dtype, (1, 17, 576), (1, 70, 576))
    found = mla_decode(q, latent[:, 3:], 512, scale=192**-0.5)
    q64, keys = exact(q.unsqueeze(2), latent[:, None, 3:])
    expected = attended(q64, keys, keys[..., :512], torch.ones(1, 67, dtype=torch.bool), 192**-0.5)[:, :, 0]
    assert ulps(found, expected, latent) <= BUDGETS["latent_attention"]["result"][dtype != torch.float32]


def test_several_queries_go_through_the_reference() -> None:
    q, latent = drawn(torch.float32, (2, 4, 3, 24), (2, 30, 24))
    visible = Visibility(27, 3, None, torch.tensor([0, 11]), torch.device("cpu"))
    triton = ops.select("triton", torch.device("cpu"), torch.float32)
    expected = ops.REFERENCE.latent_attention(q, latent, 18, visible, 0.3)
    assert torch.equal(triton.latent_attention(q, latent, 18, visible, 0.3), expected)


ONE, LATENT, TABLE = torch.ones(1, 2, 8), torch.ones(1, 5, 8), torch.zeros(1, 2, dtype=torch.int32)
REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "width": (lambda: mla_decode(ONE, torch.ones(1, 5, 9), 6), "do not fit"),
    "no rotary part": (lambda: mla_decode(ONE, LATENT, 8), "8 values do not fit"),
    "batch": (lambda: mla_decode(ONE, torch.ones(2, 5, 8), 6), "1 queries for 2 sequences"),
    "stride": (lambda: mla_decode(torch.ones(1, 8, 2).mT, LATENT, 6), "q has stride 2"),
    "dtype": (lambda: mla_decode(ONE.half(), LATENT, 6), "latent is torch.float32"),
    "lengths": (lambda: mla_decode(ONE, LATENT, 6, torch.ones(2, dtype=torch.int32)), "lengths is torch.int32 .2."),
    "table": (lambda: mla_decode(ONE, LATENT, 6, block_table=TABLE.long()), "block_table is torch.int64"),
    "sinks": (lambda: mla_decode(ONE, LATENT, 6, sinks=torch.ones(3)), r"sinks are \[3\].*expected \[2\]"),
    "pages": (lambda: mla_decode(ONE, LATENT, 6, block_table=TABLE), "needs lengths"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing() -> None:
    assert mla_decode(torch.ones(0, 2, 8), torch.ones(0, 5, 8), 6).shape == (0, 2, 6)
