"""Latent attention: both forms are one formula, the cache holds the latent and nothing else, YaRN corrects twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.families import resolve
from minillm.model.attention import Step
from minillm.model.cache import Cache, LatentCache
from minillm.model.mla import LatentAttention
from minillm.model.rope import Rotary
from minillm.ops import REFERENCE
from minillm.ops.visibility import Visibility
from minillm.spec import MLA, Norm, Rope, YarnScaling

HIDDEN = 16
EXACT = 5e-6  # fp32 on values of size 1, sums of under 100 terms; the largest of 2000 draws was 2.7e-6
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}


@st.composite
def specs(draw: st.DrawFn) -> MLA:
    rope = Rope(2 * draw(st.integers(1, 5)), draw(st.floats(10.0, 1e4)), draw(st.sampled_from(("half", "interleaved"))))
    heads, q_rank, kv_rank = draw(st.integers(1, 4)), draw(st.none() | st.integers(4, 12)), draw(st.integers(4, 20))
    sizes = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return MLA(heads, q_rank, kv_rank, *sizes, rope, Norm(1e-6), draw(st.floats(0.3, 3.0)), draw(st.booleans()))


def build(spec: MLA, seed: int = 0) -> LatentAttention:
    made, generator = LatentAttention(spec, HIDDEN, REFERENCE), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.3 * noise
    return made


def inputs(batch: int, count: int) -> Tensor:
    return torch.randn(batch, count, HIDDEN, generator=torch.Generator().manual_seed(count))


def step(spec: MLA, start: int, count: int) -> Step:
    """The tokens of an unpadded batch from a position on."""
    positions = torch.arange(start, start + count)
    rotary = {spec.rope: Rotary(spec.rope)(positions[None], (start + count,), torch.float32)}
    visible = Visibility(start, count, None, None, positions.device)
    return Step(start, rotary, {None: visible}, {None: visible.slots()})


def formula(module: LatentAttention, x: Tensor) -> Tensor:
    """The paper's equations head by head and query by query in fp64, rotation as a product of complex numbers."""
    spec = module.spec
    w = {name: parameter.double() for name, parameter in module.named_parameters()}

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ w[f"{name}.weight"].t()
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def norm(name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    def turn(x: Tensor) -> Tensor:
        pairs = torch.arange(spec.rope.dim // 2, dtype=torch.float64)
        angles = torch.arange(x.shape[-2])[:, None] * spec.rope.theta ** (-2 * pairs / spec.rope.dim)
        first, second = (x[..., ::2], x[..., 1::2]) if spec.rope.layout == "interleaved" else x.chunk(2, dim=-1)
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), dim=-1)  # one order of pairs for q and k: products are the same

    x = x.double()
    q = linear("q", x if spec.q_rank is None else norm("q_norm", linear("q_down", x)))
    down = linear("kv_down", x)
    c, k_rope = norm("kv_norm", down[..., : spec.kv_rank]), turn(down[..., spec.kv_rank :])
    heads = []
    for head in range(spec.num_heads):
        q_nope, q_rope = q.chunk(spec.num_heads, dim=-1)[head].split((spec.nope_dim, spec.rope.dim), dim=-1)
        k_nope, v = (c @ w["kv_up"].chunk(spec.num_heads)[head].t()).split((spec.nope_dim, spec.v_dim), dim=-1)
        scores = q_nope @ k_nope.transpose(1, 2) + turn(q_rope) @ k_rope.transpose(1, 2)
        scores *= spec.score_factor / math.sqrt(spec.nope_dim + spec.rope.dim)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
    return linear("out", torch.cat(heads, dim=-1))


@settings(max_examples=40)
@given(specs(), st.integers(1, 3), st.integers(1, 14))
@torch.no_grad()
def test_it_is_its_formula(spec: MLA, batch: int, count: int) -> None:
    module, x = build(spec), inputs(batch, count)
    assert (module(x, step(spec, 0, count), None) - formula(module, x)).abs().max() <= EXACT


@settings(max_examples=40)
@given(specs(), st.integers(1, 3), st.integers(1, 14), st.integers(0, 14))
@torch.no_grad()
def test_absorbed_is_expanded(spec: MLA, batch: int, count: int, past: int) -> None:
    """On the same queries and cache, for any number of queries behind any past."""
    module, total = build(spec), past + count
    cache = LatentCache(spec, batch, total, torch.float32, torch.device("cpu"))
    x = inputs(batch, total)
    cache.update(module.project(x[:, :past], step(spec, 0, past))[2], 0)
    q_nope, q_rope, new, _ = module.project(x[:, past:], step(spec, past, count))
    latent = cache.update(new, past)
    seen = Visibility(past, count, None, None, x.device)
    expanded, absorbed = (form(q_nope, q_rope, latent, seen) for form in (module.expanded, module.absorbed))
    assert expanded.shape == (batch, spec.num_heads, count, spec.v_dim)
    assert (absorbed - expanded).abs().max() <= EXACT


@settings(max_examples=30)
@given(specs(), st.lists(st.integers(1, 6), min_size=1, max_size=5))
@torch.no_grad()
def test_in_any_pieces_through_the_cache(spec: MLA, pieces: list[int]) -> None:
    """A prompt in chunks (expanded) and single tokens (absorbed) against the formula of the whole."""
    module, total = build(spec), sum(pieces)
    cache, x, found, start = LatentCache(spec, 2, total, torch.float32, torch.device("cpu")), inputs(2, total), [], 0
    for count in pieces:
        found.append(module(x[:, start : start + count], step(spec, start, count), cache))
        start += count
    assert (torch.cat(found, dim=1) - formula(module, x)).abs().max() <= EXACT


@pytest.mark.parametrize(
    ("count", "cached", "form"), [(1, True, "absorbed"), (5, True, "expanded"), (1, False, "expanded")]
)
@torch.no_grad()
def test_one_cached_token_is_absorbed(count: int, cached: bool, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding moves the query into the latent space; a prompt, and a model without a cache, expand keys and values."""
    spec = MLA(2, None, 8, 6, 4, Rope(4, 100.0), Norm(1e-6))
    module, taken = build(spec), list[str]()
    for name in ("absorbed", "expanded"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=original: (taken.append(n), f(*a))[1])
    cache = LatentCache(spec, 1, 8, torch.float32, torch.device("cpu")) if cached else None
    module(inputs(1, count), step(spec, 2 if cached else 0, count), cache)
    assert taken == [form]


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_576_values_are_cached_per_token_and_layer(family: str) -> None:
    """The sizes published for V2 and V3: 512 of the latent and 64 of the rotary key, whatever the number of heads."""
    spec, _, _ = resolve({"model_type": family, "num_experts_per_tok": 6, "num_attention_heads": 128})
    cache = Cache(spec, batch=3, capacity=10, dtype=torch.bfloat16, device="meta")
    for held in cache.layers:
        tensors = [value for value in vars(held).values() if isinstance(value, Tensor)]
        assert sum(tensor.numel() for tensor in tensors) == 576 * 3 * 10


def attention(family: str, **scaling: Any) -> MLA:
    """That of a config with DeepSeek's published YaRN."""
    scaling = {**YARN, **scaling}
    sizes = {"num_experts_per_tok": 6, "num_attention_heads": 16, "max_position_embeddings": 163840}
    spec, _, _ = resolve({"model_type": family, **sizes, "rope_scaling": scaling})
    made = spec.layers[0].attention
    assert isinstance(made, MLA)
    return made


@pytest.mark.parametrize(
    ("family", "mscale", "all_dim", "on_rotation", "on_scores"),
    [
        ("deepseek_v2", 0.707, 0.707, 1.0, (0.0707 * math.log(40) + 1) ** 2),  # as published: 1, 1.5896
        ("deepseek_v3", 1.0, 1.0, 1.0, (0.1 * math.log(40) + 1) ** 2),  # as published: 1, 1.8739
        ("deepseek_v3", 1.0, 0.5, (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1), (0.05 * math.log(40) + 1) ** 2),
        ("deepseek_v3", 1.0, 0.0, 0.1 * math.log(40) + 1, 1.0),
    ],
)
def test_yarn_corrects_rotation_and_scores_separately(
    family: str, mscale: float, all_dim: float, on_rotation: float, on_scores: float
) -> None:
    """cos and sin times m(mscale) / m(mscale_all_dim), scores times m(mscale_all_dim)²; m(s) = 0.1 s ln(factor) + 1."""
    spec = attention(family, mscale=mscale, mscale_all_dim=all_dim)
    assert isinstance(spec.rope.scaling, YarnScaling)
    assert spec.rope.scaling.attention_factor == pytest.approx(on_rotation, rel=1e-12)
    assert spec.score_factor == pytest.approx(on_scores, rel=1e-12)
    with torch.device("meta"):
        assert LatentAttention(spec, 8, REFERENCE).scale == pytest.approx(on_scores / math.sqrt(128 + 64), rel=1e-12)
