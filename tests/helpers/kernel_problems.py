"""One problem for each op that has a kernel: inputs of drawn sizes, what they give in fp64, and how far off an
implementation is. The same problems go through Triton's interpreter, the plain PyTorch versions and a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm import spec
from minillm.engine import sampling
from minillm.ops import Ops, draw, reference, routing
from tests.helpers.attention_problems import attention, latent_attention
from tests.helpers.kernel_cases import Case, Errors, exact, ulps, with_gradients
from tests.helpers.paged_problems import paged_attention, paged_latent_attention
from tests.helpers.product_problems import fp8_linear, grouped_linear, linear
from tests.helpers.recurrent_problems import channel_rule, delta_rule, delta_step, gated_rms_norm, short_conv
from tests.helpers.selective_problems import selective_scan, selective_step, short_conv_step
from tests.helpers.state_problems import gated_conv_step, state_scan, state_step

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", spec.ClampedSwiGLU(1.702, 0.7), spec.CappedSwiGLU(0.7))


def normed(x: Tensor, w: Tensor, eps: float, offset: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (w + offset)


def rms_norm(case: Case, ops: Ops) -> Errors:
    rows, n, offset = case.size(6), case.size(512), case.of((0.0, 1.0))
    cast = case.of(("before_weight", "after_weight"))

    def terms(x: Tensor, w: Tensor, g: Tensor) -> dict[Any, Tensor]:
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        return {0: r * g * (w + offset), 1: (g * x * r).abs().sum((0, 1))}

    inputs = [case.part(2, rows, n), case.values(n)]
    return with_gradients(
        case,
        inputs,
        lambda x, w: ops.rms_norm(x, w, 1e-5, offset, cast),
        lambda x, w: normed(x, w, 1e-5, offset),
        terms,
    )


@torch.no_grad()
def add_rms_norm(case: Case, ops: Ops) -> Errors:
    rows, n, offset = case.size(6), case.size(512), case.of((0.0, 1.0))
    x, residual, w = case.part(2, rows, n), case.values(2, rows, n), case.values(n)
    y, s = ops.add_rms_norm(x, residual, w, 1e-5, offset, case.of(("before_weight", "after_weight")))
    assert torch.equal(s, x + residual)
    return {"result": ulps(y, normed(*exact(s, w), 1e-5, offset))}


def add(case: Case, ops: Ops) -> Errors:
    rows, n = case.size(6), case.size(512)
    x, y = (case.values(2, rows, n) for _ in range(2))
    return {"result": 0.0 if torch.equal(ops.add(x, y), x + y) else float("inf")}


def cos_sin(case: Case, ops: Ops) -> Errors:
    """A phase is one fp32 product, so what is exact is taken from there on."""
    rows, steps, half = case.size(6), case.size(4), case.size(129)
    positions = torch.randint(100_000, (case.of((1, rows)), steps), generator=case.generator)
    own = case.of((1, rows))
    rates, factors = (torch.rand(own, 1, size, generator=case.generator) for size in (half, 1))
    given = [case.on(each) for each in (positions, rates, factors)]
    found = ops.cos_sin(*given, case.dtype)
    phases, factors = (positions[..., None].float() * rates).double(), factors.double()
    # Near a zero of cos a number is small and the error of a phase is not: it counts against the largest there is.
    exact_ones, most = (phases.cos() * factors, phases.sin() * factors), factors
    unit = torch.finfo(case.dtype).eps / 2
    return {
        name: float(((one.cpu().double() - other).abs() / (most * unit)).max())
        for name, one, other in zip(("result", "result of sin"), found, exact_ones, strict=True)
    }


def angles(case: Case, batch: int, tokens: int, half: int) -> list[Tensor]:
    made = case.values(case.of((1, batch)), tokens, half, dtype=torch.float32) * 3
    return [made.cos().to(case.dtype), made.sin().to(case.dtype)]


def rope(case: Case, ops: Ops) -> Errors:
    heads, half, rest, layout = case.size(5), case.size(129), case.of((0, 1, 30)), case.of(("half", "interleaved"))
    cos, sin = angles(case, 2, 4, half)
    x = case.values(2, 4, heads + 2, 2 * half + rest)[:, :, 1 : heads + 1]
    exactly = exact(cos, sin)
    return with_gradients(
        case, [x], lambda x: ops.rope(x, cos, sin, layout), lambda x: reference.rope(x, *exactly, layout)
    )


@torch.no_grad()
def qk_norm_rope_cache(case: Case, ops: Ops) -> Errors:
    batch, tokens, kv_heads, half = case.size(2), case.size(5), case.size(2), case.size(64)
    heads, dim, layout = kv_heads * case.size(3), 2 * half + case.of((0, 1, 6)), case.of(("half", "interleaved"))
    offset, cast, has_norm = case.of((0.0, 1.0)), case.of(("before_weight", "after_weight")), case.maybe()
    qkv, weights = case.values(batch, tokens, (heads + 2 * kv_heads) * dim), [case.values(dim), case.values(dim)]
    cos, sin = angles(case, batch, tokens, half)
    slots = [torch.randperm(8, generator=case.generator)[:tokens] for _ in range(case.of((1, batch)))]
    caches = [case.on(torch.full((batch, kv_heads, 8, dim), 7.0, dtype=case.dtype)) for _ in range(2)]
    norm = {"q_weight": weights[0], "k_weight": weights[1], "eps": 1e-5, "offset": offset, "cast": cast}
    shared = (*caches, case.on(torch.stack(slots)), cos, sin, layout)
    found = ops.qk_norm_rope_cache(qkv, heads, *shared, **(norm if has_norm else {}))
    q, k, v = exact(qkv)[0].unflatten(-1, (-1, dim)).split((heads, kv_heads, kv_heads), dim=2)
    if has_norm:
        q, k = (normed(each, *exact(w), 1e-5, offset) for each, w in zip((q, k), weights, strict=True))
    q, k = (reference.rope(each, *exact(cos, sin), layout) for each in (q, k))
    expected = [torch.full((batch, kv_heads, 8, dim), 7.0, dtype=torch.float64) for _ in range(2)]
    for b, t in itertools.product(range(batch), range(tokens)):
        for cache, each in zip(expected, (k, v), strict=True):
            cache[b, :, slots[b % len(slots)][t]] = each[b, t]
    pairs = zip(("k", "v"), caches, expected, strict=True)
    return {"result": ulps(found, q.transpose(1, 2)), **{name: ulps(one, two) for name, one, two in pairs}}


def gated_act(case: Case, ops: Ops) -> Errors:
    rows, size, activation = case.size(5), case.size(129), case.of(ACTIVATIONS)
    return with_gradients(
        case, [case.part(2, rows, 2 * size)], lambda x: ops.gated_act(x, activation),
        lambda x: reference.gated_act(x, activation),
    )  # fmt: skip


@torch.no_grad()
def route(case: Case, ops: Ops) -> Errors:
    groups = case.of((1, 1, 2, 3))
    experts = groups * case.size(40, 2)
    top_groups = case.size(groups)
    score = case.of(("softmax", "sigmoid", "softmax_chosen"))
    router = spec.Router(
        experts, case.size(min(8, experts // groups * top_groups)), score, case.maybe(), case.of((1.0, 2.5)),
        bias=case.maybe(), num_groups=groups, top_groups=top_groups, group_score=case.of(("max", "top2_sum")),
        normalize="logits" if case.maybe() else None,
    )  # fmt: skip
    logits = case.values(case.size(20), experts, dtype=torch.float32)
    bias = case.values(experts, dtype=torch.float32) * 0.1 if router.bias else None
    found = ops.route(logits, bias, router)
    expected = routing.route(logits.double().cpu(), bias if bias is None else bias.double().cpu(), router)
    assert torch.equal(found.experts.cpu(), expected.experts)  # drawn values do not tie
    return {"result": ulps(found.weights, expected.weights)}


@torch.no_grad()
def experts(case: Case, ops: Ops) -> Errors:
    """On both sides of where the form changes; matrices of either layout, some experts chosen by none."""
    count, hidden, inner, tokens = case.size(9), case.size(129), case.size(65), case.size(127)
    top_k, activation = min(count, case.size(4)), case.of(ACTIVATIONS)
    router = spec.Router(count, top_k, renormalize=True)
    x, logits = case.part(tokens, hidden), case.values(tokens, count, dtype=torch.float32)
    routed = ops.route(logits - 99 * (torch.arange(count, device=logits.device) % 5 == 3), None, router)
    gate_up, down = (
        case.values(count, 2 * inner, hidden) * hidden**-0.5,
        case.values(count, hidden, inner) * inner**-0.5,
    )
    biases = (case.values(count, 2 * inner), case.values(count, hidden)) if case.maybe() else None
    if case.maybe():
        gate_up, down = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (gate_up, down))
    noted = routed.places if case.maybe() else None
    found = ops.experts(x, routed.experts, routed.weights, gate_up, down, activation, biases, noted)
    x64, weights, g64, d64 = exact(x, routed.weights, gate_up, down)
    b64 = exact(*biases) if biases else [torch.zeros(count, 1), torch.zeros(count, 1)]
    chosen = routed.experts.cpu()
    inside = torch.einsum("nkoh,nh->nko", g64[chosen], x64) + b64[0][chosen]
    y = torch.einsum("nkhf,nkf->nkh", d64[chosen], reference.gated_act(inside, activation)) + b64[1][chosen]
    return {"result": ulps(found, (y * weights[..., None]).sum(1), (y * weights[..., None]).abs().sum(1))}


def linear_cross_entropy(case: Case, ops: Ops) -> Errors:
    tokens, hidden, words, cap = case.size(40), case.size(129), case.size(130), case.of((None, None, 3.0, 20.0, 1e4))
    targets = case.integers(words, tokens)
    targets[case.on(torch.rand(tokens, generator=case.generator) < 0.2)] = -100
    inputs = [case.part(tokens, hidden), case.values(words, hidden) * hidden**-0.5]
    inputs += [case.values(words)] if case.maybe() else []

    def loss(of: Callable[..., Tensor], at: Tensor, h: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return of(h, w, at, cap, bias=bias)

    def formula(*given: Tensor) -> Tensor:
        return loss(in_fp64, targets.cpu(), *given)

    def terms(h: Tensor, w: Tensor, *rest: Tensor) -> dict[Any, Tensor]:  # logits are rounded to the type of h
        return {"result": h @ w.t()}

    return with_gradients(case, inputs, lambda *given: loss(ops.linear_cross_entropy, targets, *given), formula, terms)


def in_fp64(h: Tensor, w: Tensor, targets: Tensor, cap: float | None, bias: Tensor | None) -> Tensor:
    z = h @ w.t() + (0.0 if bias is None else bias)
    logs = (z if cap is None else cap * torch.tanh(z / cap)).log_softmax(-1)
    counted = targets >= 0
    return -(logs.gather(1, targets.clamp(min=0)[:, None])[:, 0] * counted).sum() / counted.sum().clamp(min=1)


def sample(case: Case, ops: Ops) -> Errors:
    """The very token that the definition draws, but where rounding may decide: at the edge of the nucleus, in a tie."""
    rows, words = case.size(6), case.size(300)
    settings = [
        sampling.Sampling(case.of((0.0, 0.3, 1.0, 2.0)), case.of((0, 1, 3, words + 2)), case.of((1.0, 0.9, 0.3)),
                          case.of((0.0, 0.1, 1.0)))
        for _ in range(rows)
    ]  # fmt: skip
    given = sampling.as_tensors(settings)
    given += [torch.randint(2**62, (rows,), generator=case.generator) for _ in range(2)]
    logits = case.part(rows, words)
    found = ops.sample(logits, *map(case.on, given))
    expected = draw.sample(logits.cpu(), *given)
    return {"rows that differ": float((found.cpu() != expected).sum()) / 2}


PROBLEMS: dict[str, Callable[[Case, Ops], Errors]] = {
    each.__name__: each
    for each in (linear, rms_norm, add_rms_norm, add, cos_sin, rope, qk_norm_rope_cache, gated_act, attention,
                 latent_attention, paged_attention, paged_latent_attention, route, experts,
                 grouped_linear, fp8_linear, linear_cross_entropy, sample, short_conv, delta_rule, delta_step,
                 channel_rule, gated_conv_step, state_scan, state_step, gated_rms_norm, short_conv_step, selective_scan,
                 selective_step)
}  # fmt: skip


# The largest errors that an op may have, of results and of gradients: in fp32, and in fp16 and bf16. Measured over 80
# problems each, half of awkward sizes and half drawn from all: the comment behind has the largest seen. What they stand
# for: half a unit for rounding a result and for each operand rounded before; in fp32 a few units for sums of up to 512
# terms and for exp; caps far above the scores show whether a small tanh keeps its digits. A draw of `sample`
# differs where fp32 decides between two tokens, which no problem here does.
BUDGETS: dict[str, dict[str, tuple[float, float]]] = {
    "linear": {"result": (6, 0.75)},
    "rms_norm": {"result": (3, 1.5), "gradient": (3, 1)},  # 1.77, 1.05; 1.69, 0.41
    "add_rms_norm": {"result": (3, 1.5)},  # 1.59, 0.87
    "add": {"result": (0, 0)},
    "cos_sin": {"result": (3, 1.25)},  # 1.50, 0.99
    "rope": {"result": (1.5, 0.75), "gradient": (1.5, 0.75)},  # 0.69, 0.47; 0.62, 0.42
    "qk_norm_rope_cache": {"result": (3, 1.5)},  # 1.67, 0.77
    "gated_act": {"result": (3, 0.75), "gradient": (4, 0.75)},  # 1.59, 0.44; 2.36, 0.41
    "attention": {"result": (12, 0.75), "gradient": (20, 1.25)},  # 7.6, 0.38; 12.45, 0.74
    "latent_attention": {"result": (3, 0.75)},  # 1.21, 0.30
    "paged_attention": {"result": (6, 0.75)},  # 3.89, 0.41
    "paged_latent_attention": {"result": (4, 0.75)},  # 2.41, 0.25
    "route": {"result": (3, 6)},  # 1.70, always in fp32; 6 for a GPU, whose exp and division are 2 units off
    "experts": {"result": (6, 1.25)},  # 2.62, 0.62; the plain version 10.76
    "grouped_linear": {"result": (1.5, 1)},  # 0.74, 0.50; the plain version 1.65, 0.64
    "fp8_linear": {"result": (3, 0.75)},  # 1.51, 0.45
    "linear_cross_entropy": {"result": (8, 2), "gradient": (12, 2.5)},  # 4.06, 1.07; 8.03, 1.27
    "sample": {"result": (0, 0)},
    "short_conv": {"result": (3, 1.5)},  # 1.08, 0.79
    "delta_rule": {"result": (6, 3)},  # 2.89, 2.36: the state is always fp32
    "delta_step": {"result": (6, 3)},
    "channel_rule": {"result": (6, 3)},  # 1.93, 0.27; 2.17 of the state, which is always fp32
    "gated_conv_step": {"result": (3, 1.5)},  # 0.81, 0.60
    "state_scan": {"result": (6, 3)},  # 0.89 over 6 problems; y and the state are always fp32
    "state_step": {"result": (6, 3)},  # 2.28, 1.28; the state is always fp32
    "short_conv_step": {"result": (3, 1.5)},  # 0.74, 0.27, here and below over 6 problems
    "selective_scan": {"result": (6, 3)},  # 1.19, 0.16; the state is always fp32
    "selective_step": {"result": (6, 3)},  # 0.71, 0.24
    "gated_rms_norm": {"result": (3, 1.5)},  # 1.56, 0.97
}


def hold(op: str, errors: Errors, dtype: torch.dtype) -> None:
    """An op to its budget."""
    for name, error in errors.items():
        kind = "gradient" if name.startswith("gradient") else "result"
        assert error <= BUDGETS[op][kind][dtype != torch.float32], (name, error)
