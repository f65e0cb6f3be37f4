"""Quantised weights times x in whole numbers of two bytes, where the processor multiplies bytes (AVX512-VNNI).

That products are right at any shape is in `test_cpu_ops.py`; here is what x itself may be, and what is read.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.ops.cpu import matrices
from minillm.ops.cpu.loops import integers
from minillm.weights.ints import Int4, Int8

pytestmark = pytest.mark.skipif(not integers.VNNI, reason="for processors that multiply bytes")

BLOCK = integers.BLOCK
OUTPUTS, INPUTS = 5, 300


def quantised(form: Int8 | Int4, seed: int = 0) -> dict[str, Tensor]:
    w = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed))
    return {ending: part.contiguous() for ending, part in form.quantise(w).items()}


def multiply(form: Int8 | Int4, x: Tensor, parts: dict[str, Tensor]) -> Tensor:
    if isinstance(form, Int8):
        return matrices.int8_linear(x, parts[""], parts["_scale"])
    of_groups = parts["_scale"], parts.get("_zero"), form.group
    return matrices.int4_linear(x, parts[""], *of_groups, None, parts["_factor"])


FORMS = st.sampled_from((Int8(), Int4(16), Int4(32, symmetric=False), Int4(128), Int4(256, symmetric=False)))


@settings(max_examples=100)
@given(FORMS, st.integers(0, 99), st.lists(st.integers(-30, 60), min_size=3, max_size=3), st.floats(1, 2000))
@torch.no_grad()
def test_blocks_of_any_size(form: Int8 | Int4, seed: int, exponents: list[int], outlier: float) -> None:
    """Each block of x has a magnitude of its own, and one number far above the others: what the largest of a block
    costs its others is at most 2^-14.98 of it, and a result is rounded by half a unit."""
    x = torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(seed))
    x[0, torch.arange(INPUTS) % BLOCK == seed % 40] *= outlier
    x = (x * 2.0 ** torch.tensor(exponents).repeat_interleave(BLOCK)[:INPUTS]).bfloat16()
    parts = quantised(form, seed)
    matrix = form.dequantise(parts, INPUTS, torch.float64)
    found, expected = multiply(form, x, parts).double(), x.double() @ matrix.t()
    most = torch.stack([part.abs().max() for part in x[0].double().split(BLOCK)]).repeat_interleave(BLOCK)[:INPUTS]
    allowed = matrix.abs() @ most * 2.0**-14.98 + expected.abs() * 2.0**-8
    assert ((found - expected).abs() <= allowed).all()


@given(st.integers(0, 2**62), st.sampled_from((128, 191, 254, 255)), st.sampled_from((-1, 1)), st.integers(-60, 60))
def test_what_bfloat16_has_stays_exact(seed: int, mantissa: int, sign: int, exponent: int) -> None:
    """Down to 1/127 of the largest: 256 h + l times the power is x, bit for bit."""
    x = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)) * 20).clamp(-120, 120).bfloat16()
    x[seed % BLOCK] = sign * mantissa
    x = x * 2.0**exponent
    x[x.abs() < x.abs().max() / 127] = 0
    parts, _, powers = integers.split(x.view(torch.uint16).numpy(), 1, False)
    high, low = parts[:BLOCK].astype(np.float64), parts[BLOCK : 2 * BLOCK].astype(np.float64)
    assert ((256 * high + low) * powers[0] == x.double().numpy()).all()


@settings(max_examples=30)
@given(FORMS, st.sampled_from((float("nan"), float("inf"), -float("inf"))), st.integers(0, INPUTS - 1))
@torch.no_grad()
def test_what_is_no_number_stays_none(form: Int8 | Int4, value: float, place: int) -> None:
    x = torch.randn(2, INPUTS).bfloat16()
    x[1, place] = value
    found = multiply(form, x, quantised(form))
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


@given(FORMS)
@torch.no_grad()
def test_zeros_give_zeros(form: Int8 | Int4) -> None:
    assert torch.equal(multiply(form, torch.zeros(1, INPUTS).bfloat16(), quantised(form)), torch.zeros(1, OUTPUTS))


def before_a_wall(tensor: Tensor) -> Any:
    """A copy that ends where a page begins that must not be read, and what keeps it."""
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    kept = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(kept))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(kept, dtype=tensor.dtype, count=tensor.numel(), offset=pages - size).view(tensor.shape)
    copy.copy_(tensor)
    return copy


@given(FORMS, st.integers(1, 999))
@settings(max_examples=40)
@torch.no_grad()
def test_nothing_is_read_behind_a_matrix(form: Int8 | Int4, inputs: int) -> None:
    """A process that did would end here."""
    w = torch.randn(OUTPUTS, inputs)
    parts = {ending: before_a_wall(part.contiguous()) for ending, part in form.quantise(w).items()}
    assert multiply(form, torch.randn(1, inputs).bfloat16(), parts).isfinite().all()
