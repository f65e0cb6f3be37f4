"""Small decoders for tests that need no reference: their specs as hypothesis draws them, built with every parameter
random, and a spec with one field replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st

from minillm.model.decoder import Decoder
from minillm.ops import CPU, Ops
from minillm.spec import (
    GQA,
    KV,
    MLA,
    MLP,
    XIELU,
    Beside,
    CappedSwiGLU,
    ChannelDelta,
    Chunk,
    ClampedSwiGLU,
    Embedding,
    Gate,
    GatedConv,
    GatedDeltaNet,
    GatedMLP,
    GatedRecurrence,
    Layer,
    LayerNorm,
    Learned,
    LinearScaling,
    LowRank,
    Mixer,
    MoE,
    Norm,
    PerLayer,
    ProportionalScaling,
    QKNorm,
    Recurrent,
    Rope,
    Router,
    Scores,
    SelectiveScan,
    StateSpace,
    Streams,
    Temperature,
    Unturned,
)
from minillm.spec import Decoder as Spec

EXACT = 3e-5  # fp32, sums of under 100 terms of size one in another order; the largest ever seen was 2.06e-5
MARGIN = 1e-4  # of an expert chosen over one not chosen: rounding must not decide


GATED = [GatedMLP(20, each) for each in ("silu", ClampedSwiGLU(1.5, 0.7), CappedSwiGLU(0.3))]
MLPS = (*GATED, GatedMLP(20, sparsity=0.8), MLP(20, "gelu", bias=True), MLP(20, "relu2"), MLP(20, XIELU()))


def key_norms(norm: Norm) -> tuple[QKNorm | None, ...]:
    """Of q and k."""
    apart = QKNorm(LayerNorm(0.1, bias=False), "heads")
    return None, QKNorm(norm), QKNorm(norm, "all"), QKNorm(norm, turned=True), apart


class Drawn:
    """Sizes that hypothesis draws."""

    def __init__(self, data: st.DataObject):
        self.data = data

    def size(self, most: int, least: int = 1) -> int:
        return self.data.draw(st.integers(least, most))

    def of(self, options: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(options))


@st.composite
def mixers(draw: st.DrawFn, rope: Rope, norm: Norm) -> Mixer:
    if draw(st.integers(0, 2)):
        return draw(attentions(rope, norm))
    if draw(st.booleans()):
        return draw(state_spaces(norm))
    if draw(st.booleans()):
        return GatedConv(draw(st.integers(4, 20)), draw(st.integers(1, 4)))
    if draw(st.booleans()):
        sizes = draw(st.integers(1, 4)), draw(st.integers(4, 8)), draw(st.integers(1, 4))
        return ChannelDelta(*sizes, Norm(0.1), draw(st.none() | st.integers(4, 8)), draw(st.sampled_from((None, -4.0))))
    k_heads = draw(st.integers(1, 2))
    sizes = k_heads * draw(st.integers(1, 3)), draw(st.integers(4, 8)), draw(st.integers(4, 8))
    return GatedDeltaNet(k_heads, *sizes, draw(st.integers(1, 4)), Norm(0.1), draw(st.sampled_from((1.0, 2.0))))


@st.composite
def state_spaces(draw: st.DrawFn, norm: Norm) -> StateSpace | SelectiveScan | GatedRecurrence | Beside:
    if draw(st.integers(0, 2)) == 0:
        return GatedRecurrence(draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 4)), "gelu")
    if draw(st.booleans()):
        inside = draw(st.sampled_from((None, norm, Norm(0.1, affine=False))))
        sizes = [draw(st.integers(4, 20)), draw(st.integers(2, 8)), draw(st.integers(2, 8)), draw(st.integers(1, 4))]
        return SelectiveScan(*sizes, inside, draw(st.booleans()), draw(st.booleans()))
    groups = draw(st.integers(1, 2))
    sizes = groups * draw(st.integers(1, 3)), draw(st.integers(2, 8)), groups, draw(st.integers(2, 8))
    inside, limits = draw(st.sampled_from((None, Norm(0.1)))), draw(st.sampled_from(((0.0, None), (0.2, 1.0))))
    factors = draw(st.sampled_from(((1.0,) * 5, (0.5, 1.5, 0.7, 1.2, 0.9))))
    made = StateSpace(
        *sizes, draw(st.integers(1, 4)), inside, draw(st.booleans()), draw(st.booleans()), limits, factors
    )
    if draw(st.booleans()):
        return made
    return Beside(GQA(4, 2, 8, draw(st.sampled_from((Rope(8, 100.0), None))), qk_norm=QKNorm(norm)), made, (0.7, 1.3))


@st.composite
def attentions(draw: st.DrawFn, rope: Rope, norm: Norm) -> GQA | MLA:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    if draw(st.booleans()):
        ranks = draw(st.none() | st.integers(4, 12)), draw(st.integers(4, 12))  # the norm of one value is its sign
        sizes = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        factor, warm = draw(st.floats(0.5, 2.0)), draw(st.sampled_from((None, Temperature(0.3, 5))))
        gate = draw(st.sampled_from((None, Gate(width="head"), Gate())))
        place = draw(st.sampled_from((rope, Unturned(rope.dim))))
        return MLA(heads, *ranks, *sizes, place, norm, factor, temperature=warm, gate=gate)
    value_norm, plain = draw(st.sampled_from((None, Norm(0.1, affine=False)))), KV(v_is_k=True)
    apart = KV(value_norm, v_dim=6, v_scale=0.6)
    kv = draw(st.sampled_from((KV(value_norm), replace(plain, v_norm=value_norm), apart)))
    gates = (Gate("softplus", "head"), Gate(), *([] if kv == apart else [Gate(with_q=True)]))  # as wide as q
    return GQA(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=8,
        rope=draw(st.sampled_from((rope, None))),
        window=draw(st.none() | st.integers(1, 12) | st.integers(1, 12).map(Chunk)),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(key_norms(norm))),
        clip=draw(st.none() | st.floats(0.5, 2.0)),
        scores=draw(scores(heads)),
        kv=kv,
        weakened=draw(st.sampled_from((None, "sinks", *gates))),
    )


@st.composite
def scores(draw: st.DrawFn, heads: int) -> Scores:
    slopes = tuple(2.0 ** -(i + 1) for i in range(heads))
    return Scores(
        draw(st.none() | st.floats(0.1, 1.0)),
        draw(st.none() | st.floats(0.5, 5.0)),
        draw(st.sampled_from((None, slopes))),
        draw(st.sampled_from((None, Temperature(0.3, 5, 1)))),
    )


@st.composite
def ffns(draw: st.DrawFn) -> GatedMLP | MLP | MoE:
    if draw(st.booleans()):
        return draw(st.sampled_from(MLPS))
    experts, score = draw(st.integers(2, 6)), draw(st.sampled_from(("softmax", "softmax_chosen", "sigmoid")))
    normalize = draw(st.sampled_from((None, Norm(0.1))))
    router = Router(
        experts, draw(st.integers(1, experts - 1)), score, renormalize=draw(st.booleans()), normalize=normalize
    )
    shared, norm = draw(st.sampled_from((None, GatedMLP(6)))), draw(st.sampled_from((None, Norm(0.1))))
    gated = shared is not None and draw(st.booleans())
    weighs = draw(st.booleans())
    return MoE(router, draw(st.integers(3, 12)), shared=shared, shared_gate=gated, norm=norm, weighs_input=weighs)


@st.composite
def borrowing(draw: st.DrawFn, layers: list[Layer]) -> list[Layer]:
    """The layers, and perhaps others that read the keys and values of one of them."""
    own = [index for index, layer in enumerate(layers) if isinstance(layer.attention, GQA)]
    found = [*layers]
    for index in draw(st.lists(st.sampled_from(own), max_size=4 - len(layers))) if own else ():
        attention = replace(layers[index].attention, kv=KV(layer=index, v_dim=layers[index].attention.kv.v_dim))
        found.append(replace(layers[index], attention=attention, ffn=draw(ffns())))
    return found


@st.composite
def parted(draw: st.DrawFn, layer: Layer) -> Layer:
    """The layer, or what is left without one of its parts."""
    left_out = draw(st.sampled_from((None, None, "attention", "ffn")))
    if left_out is None:
        return layer
    gone = {left_out: None, f"{left_out}_norm": None, f"post_{left_out}_norm": None}
    return replace(layer, **gone, parallel=False, low_rank=None)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Small decoders whose layers differ in kind, heads, windows, norms and biases."""
    rope = Rope(
        dim=draw(st.sampled_from((4, 8))),
        theta=draw(st.sampled_from((10.0, 1e4))),
        layout=draw(st.sampled_from(("half", "interleaved"))),
    )
    rope = replace(rope, scaling=draw(st.sampled_from((None, LinearScaling(2.0), ProportionalScaling(0.6)))))
    norm = Norm(1e-5)
    norms = st.sampled_from((None, norm, Norm(1e-5, offset=1.0, cast="after_weight"), LayerNorm(1e-5, affine=False),
                              LayerNorm(1e-5, offset=1.0)))  # fmt: skip
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        mixer, ffn = draw(mixers(rope, norm)), draw(ffns())
        # What a recurrent layer gives may be close to zero, and a norm behind it would multiply its rounding.
        behind = None if isinstance(mixer, (Recurrent, Beside)) else draw(norms)
        flags = {"parallel": draw(st.booleans()), "scaled": draw(st.booleans())}
        beside = None if flags["parallel"] else draw(st.sampled_from((None, LowRank(3, Norm(0.1)))))
        factor = draw(st.sampled_from((1.0, 0.4)))
        parts = norm, mixer, draw(norms), ffn, behind, draw(norms)
        layers.append(draw(parted(Layer(*parts, **flags, low_rank=beside, branch_scale=factor))))
    layers = draw(borrowing(layers))
    told = draw(st.sampled_from((None, PerLayer(31, len(layers), 5, Norm(0.1), "gelu_tanh"))))
    learned, before = draw(st.sampled_from((None, Learned(64), Learned(64, 2)))), draw(st.sampled_from((None, norm)))
    placed, cap = Embedding(draw(st.sampled_from((1.0, 4.0))), learned, before), draw(st.none() | st.floats(1.0, 9.0))
    more = {"per_layer": told, "streams": draw(st.none() | st.builds(Streams, st.integers(2, 4), st.just(Norm(0.1))))}
    tied = draw(st.booleans())
    return Spec(31, 16, tuple(layers), norm, tied, context=64, embedding=placed, logit_softcap=cap, **more)


def build(spec: Spec, seed: int = 0, ops: Ops = CPU) -> Decoder:
    model = Decoder(spec, ops)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.dim() == 1))
    return model.eval()


def uncut(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of whole rows without a cache, where no choice of an expert is as good as a tie."""
    logits, routing = model(tokens, collect_routing=True)
    for layer, routed in zip(model.spec.layers, routing, strict=True):
        if routed is not None:
            best = routed.logits.topk(layer.ffn.router.top_k + 1).values
            assume((best[:, -2] - best[:, -1]).min() > MARGIN)
    return logits


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(31, shape, generator=torch.Generator().manual_seed(seed))


def mutate(value: Any, owner: type, field: str, new: Any) -> Any:
    """The same tree of specs with one field replaced wherever its class occurs."""
    if isinstance(value, tuple):
        return tuple(mutate(each, owner, field, new) for each in value)
    if not dataclasses.is_dataclass(value):
        return value
    inner = {f.name: mutate(getattr(value, f.name), owner, field, new) for f in dataclasses.fields(value)}
    if isinstance(value, owner):
        inner[field] = new
    return type(value)(**inner)
