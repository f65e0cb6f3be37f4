"""Many tokens through their experts on a CPU: what a prompt takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops import grouped, reference
from minillm.ops.cpu import matrices
from minillm.ops.cpu.loops.dots import NATIVE_BF16
from minillm.ops.stacked import GroupedMatrices
from minillm.weights.ints import Int4, Int8
from tests.helpers.kernel_cases import Case, exact, ulps
from tests.helpers.kernel_problems import BUDGETS
from tests.helpers.specs import Drawn
from tests.ops.test_cpu_ops import ACTIVATIONS, CPU_DEVICE, DTYPES, LOOPS


@settings(max_examples=60)
@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 80), st.sampled_from((Int8(), Int4(16), Int4(32, False))))
@torch.no_grad()
def test_many_tokens_through_quantised_experts(
    data: st.DataObject, dtype: torch.dtype, tokens: int, integers: Int8 | Int4
) -> None:
    """The matrices are written out by loops, as `dequantise` rounds them. Weights of experts, what is between, each
    expert's result and the sum are rounded, half a unit each. Largest seen of 400: 0.49."""
    case, form = Case(Drawn(data), dtype, CPU_DEVICE), replace(integers.form, tile=LOOPS.tile)
    count, hidden, inner, top_k = case.size(5), case.size(70), case.size(40), 1
    x, chosen = case.values(tokens, hidden), case.integers(count, tokens, top_k)
    weights, held, plain = torch.rand(tokens, top_k, generator=case.generator), [], []
    for outputs, inputs in ((2 * inner, hidden), (hidden, inner)):
        w = case.values(count * outputs, inputs, dtype=torch.float32) * inputs**-0.5
        made = [form.pack(integers.quantise(part)) for part in w.view(count, outputs, inputs)]
        parts = {name: torch.stack([each[name] for each in made]) for name in made[0]}
        plain.append(form.dequantise(parts, inputs, dtype, outputs).double())
        held.append(GroupedMatrices(parts, form, outputs, inputs, dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "FEW_ROWS", 0)
        patch.setattr(GroupedMatrices, "__getitem__", None)
        found = LOOPS.experts(x, chosen, weights, *held, "silu")
    gate_up, down = (each[chosen[:, 0]] for each in plain)
    gate, up = torch.einsum("noh,nh->no", gate_up, x.double()).chunk(2, dim=-1)
    gate_terms, up_terms = torch.einsum("noh,nh->no", gate_up.abs(), x.double().abs()).chunk(2, dim=-1)
    y = torch.einsum("nhf,nf->nh", down, F.silu(gate) * up)
    # Where a gate's or up's terms cancel, what is left of them has the rounding of the terms; silu is steeper than 1
    # nowhere but for a tenth.
    between = 1.1 * gate_terms * up.abs() + F.silu(gate).abs() * up_terms
    terms = torch.einsum("nhf,nf->nh", down.abs(), between)
    assert ulps(found, y * weights, terms * weights) <= 1.2


@pytest.mark.skipif(not NATIVE_BF16, reason="for processors that multiply bf16")
@settings(max_examples=60)
@given(st.data(), st.integers(1, 250), st.integers(1, 9), st.sampled_from(ACTIVATIONS), st.booleans())
@torch.no_grad()
def test_many_tokens_through_experts(data: st.DataObject, tokens: int, count: int, activation: Any, few: bool) -> None:
    """In bf16: what is between the two products is rounded, half a unit, so is each expert's result, and their sum."""
    case = Case(Drawn(data), torch.bfloat16, CPU_DEVICE)
    hidden, inner, top_k = 16 * case.size(5), 4 * case.size(20), min(count, case.size(4))
    x, gate_up, down = (
        case.values(tokens, hidden),
        case.values(count, 2 * inner, hidden),
        case.values(count, hidden, inner),
    )
    gate_up, down = gate_up * hidden**-0.5, down * inner**-0.5
    logits = torch.rand(tokens, count, generator=case.generator)
    logits[:, 1:] -= 2.0 * few  # most tokens choose one expert: many tiles of it, few of others
    weights, chosen = logits.topk(top_k, dim=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "FEW_ROWS", 0)
        patch.setattr(grouped, "experts", None)
        found = LOOPS.experts(x, chosen, weights, gate_up, down, activation)
    x64, w64, g64, d64 = exact(x, weights, gate_up, down)
    between = reference.gated_act(torch.einsum("nkoh,nh->nko", g64[chosen], x64), activation)
    y = torch.einsum("nkhf,nkf->nkh", d64[chosen], between) * w64[..., None]
    assert ulps(found, y.sum(1), y.abs().sum(1)) <= BUDGETS["experts"]["result"][1]
