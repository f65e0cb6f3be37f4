"""A layer's spec as the equations that it computes, with this model's numbers in them: for `explain`.

x is the layer's input, y its output, W[m x n] a matrix that maps n values to m.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from minillm.explain import indexed, scanned, scores
from minillm.explain.compressed import compressed
from minillm.explain.scanned import w
from minillm.explain.streams import around, corrected, foreseen, taken_in, told
from minillm.spec import (
    GQA,
    MLA,
    MLP,
    XIELU,
    Beside,
    CappedSwiGLU,
    ChannelDelta,
    Chunk,
    ClampedSwiGLU,
    Compressed,
    Decoder,
    Fronted,
    GatedConv,
    GatedDeltaNet,
    GatedMLP,
    GatedRecurrence,
    HyperConnections,
    Layer,
    LayerNorm,
    MoE,
    Norm,
    ProportionalScaling,
    Rope,
    Router,
    SelectiveScan,
    StateSpace,
    Ungated,
)


def equations(layer: Layer, decoder: Decoder) -> list[str]:
    """One line for each step, from x to y."""
    hidden_size = decoder.hidden_size
    norm = layer.attention_norm or layer.ffn_norm or layer.post_attention_norm
    own = {"n": norm}  # what differs from it has a name of its own
    own |= {
        name: each for name, each in (("n_a", layer.post_attention_norm), ("n_f", layer.post_ffn_norm)) if each != norm
    }
    factor = "" if layer.branch_scale == 1 else f"{layer.branch_scale:g} "
    attended = factor + (f"{'n_a' if 'n_a' in own else 'n'}(a)" if layer.post_attention_norm else "a")
    fed = factor + (f"{'n_f' if 'n_f' in own else 'n'}(f)" if layer.post_ffn_norm else "f")
    before = "n(x)" if layer.attention_norm else "x"
    inner = "x" if layer.parallel else "h"
    if layer.ffn_norm is not None:
        inner = f"n({inner})"
    elif layer.parallel:
        inner = before
    if isinstance(decoder.streams, HyperConnections):
        return [*_connected(layer, decoder.streams, hidden_size, attended, fed), *_norms(own)]
    lines = foreseen(decoder.streams, hidden_size) if decoder.streams else []
    if layer.attention is None or layer.ffn is None:
        return [*_only(layer, before, attended, fed, hidden_size), *_norms(own)]
    lines += [
        f"u = {before}",
        *PARTS[type(layer.attention)](layer.attention, hidden_size),
        *scores.convolved("a", layer.conv),
    ]
    if layer.low_rank:
        r = layer.low_rank.rank
        lines.append(f"h = (x + {attended} + u + n({w(hidden_size, r)} {w(r, hidden_size)} u)) / sqrt(2)")
    else:
        lines += [] if layer.parallel else [f"h = x + {attended}"]
    lines += [f"u = {inner}", *PARTS[type(layer.ffn)](layer.ffn, hidden_size)]
    lines += ["f = s f, one learned number s"] if layer.scaled == "ffn" else []
    lines += scores.convolved("f", layer.conv)
    lines.append(f"y = x + {attended} + {fed}" if layer.parallel else f"y = h + {fed}")
    lines += corrected(decoder.streams) if decoder.streams else []
    lines += told(decoder.per_layer, hidden_size, bool(decoder.streams)) if decoder.per_layer else []
    lines += ["y = s y, one learned number s"] if layer.scaled is True else []
    return [*lines, *_norms(own)]


def _connected(layer: Layer, s: HyperConnections, hidden: int, attended: str, fed: str) -> list[str]:
    """Of a layer whose parts each see a mix of several streams x_0, x_1, ..."""
    lines, parts = (
        around(s, hidden),
        ((layer.attention, layer.attention_norm, attended), (layer.ffn, layer.ffn_norm, fed)),
    )
    for part, norm, made in parts:
        if part is not None:
            lines += [f"u = {'n(x)' if norm else 'x'}", *PARTS[type(part)](part, hidden), taken_in(s, made)]
    return [*lines, "y = all x_j"]


def _norms(own: dict[str, Norm | LayerNorm | None]) -> list[str]:
    return [f"{name}: {_norm(each)}" for name, each in own.items() if each]


def _only(layer: Layer, before: str, attended: str, fed: str, hidden: int) -> list[str]:
    """Of a layer that lets positions see each other or has a feed-forward, not both."""
    if layer.attention is not None:
        return [f"u = {before}", *PARTS[type(layer.attention)](layer.attention, hidden), f"y = x + {attended}"]
    assert layer.ffn is not None
    return [f"u = {'n(x)' if layer.ffn_norm else 'x'}", *PARTS[type(layer.ffn)](layer.ffn, hidden), f"y = x + {fed}"]


def _norm(norm: Norm | LayerNorm) -> str:
    if isinstance(norm, LayerNorm):
        factor = f" * ({norm.offset:g} + w)" if norm.offset else " * w"
        weights = factor + (" + b" if norm.bias else "") if norm.affine else ""
        return f"(x - mean x) / sqrt(var x + {norm.eps:g})" + weights
    weight = "w " if not norm.offset else f"({norm.offset:g} + w) "
    return f"{weight if norm.affine else ''}x / sqrt(mean x² + {norm.eps:g})"


def _gqa(a: GQA, hidden: int) -> list[str]:
    q, kv, bias = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, " + b" if a.qkv_bias else ""
    norm = {"head": "norm of each head", "heads": "norm of each head with a weight of its own",
            "all": "norm over all heads"}[a.qk_norm.width] if a.qk_norm else ""  # fmt: skip
    clip = f"clamped to ±{a.clip:g} (v too)" if a.clip is not None else ""
    steps = [_turned(a), norm, clip] if a.qk_norm and a.qk_norm.turned else [norm, clip, _turned(a)]
    seen = indexed.seen(a) if a.window is None else f"i - {a.window} < j <= i"
    seen = f"floor(i / {a.window}) {a.window} <= j <= i" if isinstance(a.window, Chunk) else seen
    shared = f", each kv head for {a.num_heads // a.num_kv_heads} of q" if a.num_heads != a.num_kv_heads else ""
    made = "k = v = " if a.kv.v_is_k else "k, v = "
    made += f"{w(kv, hidden)} u{bias}" if a.kv.layer is None else f"those of layer {a.kv.layer}"
    made += "" if a.v_dim == a.head_dim else f", but v of {a.v_dim}"
    made += "" if a.kv.v_scale == 1 else f", v times {a.kv.v_scale:g}"
    return [
        f"q = {w(q, hidden)} u{bias}, {made}: {a.num_heads} and {a.num_kv_heads} heads of {a.head_dim}{shared}",
        *([f"v: each head {_norm(a.kv.v_norm).replace('x', 'v')}"] if a.kv.v_norm else []),
        *scores.convolved("k, v", a.conv),
        f"{'q, k' if a.kv.layer is None else 'q'}: {', '.join(filter(None, steps))}",
        *scores.relative(a, hidden),
        *scores.tempered(a),
        *([_gate(a, hidden)] if a.gate else []),
        *indexed.choice(a, hidden),
        f"a_i = {w(hidden, a.num_heads * a.v_dim)} {'(s_i * ' if a.gate else ''}sum over {seen} of "
        f"softmax_j({scores.formula(a)}) v_j{')' if a.gate else ''}{' + b' if a.out_bias else ''}{_sink(a)}",
    ]


def _sink(a: GQA | MLA) -> str:
    return ", and a learned sink that only counts in the softmax" if a.sinks else ""


def _gate(a: GQA | MLA, hidden: int) -> str:
    assert a.gate is not None
    rows, each = (a.num_heads, ", one for a head") if a.gate.width == "head" else (a.num_heads * a.v_dim, "")
    bias = " + b" if isinstance(a, GQA) and a.qkv_bias and a.gate.with_q else ""
    return f"s = {a.gate.activation}({w(rows, hidden)} u{bias}){each}"


def _turned(a: GQA) -> str:
    if a.rope is None:
        return "not rotated" if a.scores.slopes or a.scores.relative else "as they are, whatever their position"
    part = "" if a.rope.dim == a.head_dim else f"the first {a.rope.dim} values of "
    return f"{part}each head rotated by position, base {a.rope.theta:g}" + _scaled(a.rope.scaling)


def _beside(a: Beside, hidden: int) -> list[str]:
    one, two = (PARTS[type(each)](each, hidden) for each in (a.attention, a.recurrent))
    first, second = ("" if each == 1 else f"{each:.4g} " for each in a.factors)
    one, two = ([line.replace("a_i = ", "p_i = ") for line in one], [line.replace("a = ", "s = ") for line in two])
    return [*one, *two, f"a = {first}p + {second}s"]


def _mla(a: MLA, hidden: int) -> list[str]:
    width = a.nope_dim + a.rope.dim
    down = f"{w(a.num_heads * width, hidden)} u"
    if a.q_rank is not None:
        down = f"{w(a.num_heads * width, a.q_rank)} n({w(a.q_rank, hidden)} u)"
    return [
        f"q = {down}: {a.num_heads} heads of {a.nope_dim} + {a.rope.dim}",
        f"c, r = {w(a.kv_rank + a.rope.dim, hidden)} u, c = n(c): "
        f"{a.kv_rank} + {a.rope.dim} values{', all that is cached' if a.indexer is None else ', cached'}",
        f"k = [{w(a.nope_dim, a.kv_rank)} c | r], v = {w(a.v_dim, a.kv_rank)} c for each head",
        f"the last {a.rope.dim} values of q, and r, "
        + (
            f"rotated by position, base {a.rope.theta:g}{_scaled(a.rope.scaling)}"
            if isinstance(a.rope, Rope)
            else "as they are, whatever their position"
        ),
        *([_gate(a, hidden)] if a.gate else []),
        *indexed.choice(a, hidden),
        f"a_i = {w(hidden, a.num_heads * a.v_dim)} {'(s_i * ' if a.gate else ''}sum over {indexed.seen(a)} of "
        f"softmax_j({a.score_factor * width**-0.5:.4g} q_i k_j) v_j{')' if a.gate else ''}{_sink(a)}",
    ]


def _scaled(scaling: Any) -> str:
    if isinstance(scaling, ProportionalScaling):
        return f", the first {scaling.part:.0%} of its pairs" + (
            f", {scaling.factor:g} times slower" if scaling.factor != 1 else ""
        )
    return "" if scaling is None else f", scaled: {type(scaling).__name__.removesuffix('Scaling')}"


def _gated(f: GatedMLP | MoE, hidden: int) -> list[str]:
    inner, bias = f.intermediate_size, " + b" if f.bias else ""
    if isinstance(a := f.activation, ClampedSwiGLU):
        shifted = f"({a.shift:g} + v)" if a.shift else "v"
        product = f"g sigmoid({a.alpha:g} g) * {shifted}){bias}, g = min({w(inner, hidden)} u{bias}, {a.limit:g})"
        return [f"f = {w(hidden, inner)} ({product}, v = {w(inner, hidden)} u{bias} clamped to ±{a.limit:g}"]
    if isinstance(a, CappedSwiGLU):
        product = f"min(silu({w(inner, hidden)} u{bias}), {a.limit:g}) * v){bias}"
        return [f"f = {w(hidden, inner)} ({product}, v = {w(inner, hidden)} u{bias} clamped to ±{a.limit:g}"]
    if isinstance(a, Ungated):
        return _mlp(MLP(inner, a.activation, f.bias), hidden)
    before, after = ("" if each == 1 else f"{each:.4g} " for each in getattr(f, "factors", (1, 1)))
    gate, lowered = f"{before}{w(inner, hidden)} u{bias}", ""
    if share := getattr(f, "sparsity", 0.0):
        gate = "g"
        lowered = (
            f", g = max(t - mean t - {NormalDist().inv_cdf(share):.4g} std t, 0), t = {w(inner, hidden)} u{bias}: "
            f"about {share:.0%} are 0"
        )
    return [f"f = {after}{w(hidden, inner)} ({f.activation}({gate}) * ({w(inner, hidden)} u{bias})){bias}{lowered}"]


def _mlp(f: MLP, hidden: int) -> list[str]:
    inner, bias = f.intermediate_size, " + b" if f.bias else ""
    if isinstance(f.activation, XIELU):
        b, least = f.activation.linear, f.activation.least
        return [
            f"f = {w(hidden, inner)} g(t){bias}, t = {w(inner, hidden)} u{bias}, g(t) = softplus(p) t² + {b:g} t where "
            f"t > 0, else ({b:g} + softplus(m)) (exp(min(t, {least:g})) - 1 - t) + {b:g} t, with learned p and m"
        ]
    act = {"relu2": "relu²"}.get(f.activation, f.activation)
    return [f"f = {w(hidden, inner)} {act}({w(inner, hidden)} u{bias}){bias}"]


def _moe(f: MoE, hidden: int) -> list[str]:
    each = _gated(f, f.latent or hidden)[0].removeprefix("f = ")
    weighed = f": {f.weighed} of one width side by side, each times its p" if f.weighed else ""
    gate = "sigmoid(w u) " if f.shared_gate else ""
    made = PARTS[type(f.shared)](f.shared, hidden)[0].removeprefix("f = ") if f.shared else ""
    shared = [f"s = {gate}{made}{weighed}"] if f.shared else []
    chosen = "the chosen e" if f.own is None else f"those chosen e that are {f.own[0]} to {f.own[1] - 1}"
    total, s = f"sum over {chosen} of p_e E_e(u)", "n(s)" if f.norm else "s"
    if f.norm:  # two of its own for each of the two parts
        shared, total = [line.replace(" u", " n(u)") for line in shared], f"n(sum over {chosen} of p_e E_e(n(u)))"
    if f.latent:
        each, total = each.replace(" u", " v"), f"{w(hidden, f.latent)} sum over {chosen} of p_e E_e(v)"
        return [
            *_router(f.router, hidden, f.hashed, f.weighed),
            *shared,
            f"f = {total}{f' + {s}' if shared else ''},  v = {w(f.latent, hidden)} u,  E_e(v) = {each}",
        ]
    return [
        *_router(f.router, hidden, f.hashed, f.weighed),
        *shared,
        f"f = {total}{f' + {s}' if shared else ''},  E_e(u) = {each}",
    ]


def _router(r: Router, hidden: int, hashed: int | None, weighed: int) -> list[str]:
    given = f"({_norm(r.normalize).replace('x', 'u')} / {hidden**0.5:.4g})" if isinstance(r.normalize, Norm) else "u"
    logits = f"{w(r.num_experts + weighed, hidden)} {given}{' + b' if r.logit_bias else ''}"
    logits = f"standardised({logits})" if r.normalize == "logits" else logits
    score = {"softmax_chosen": "", "sparsemixer": "", "sqrt_softplus": "sqrt softplus"}.get(r.score, r.score)
    groups = f" in the {r.top_groups} best of {r.num_groups} groups" if r.num_groups > 1 else ""
    weights = {"softmax_chosen": "softmax over them", "sparsemixer": "SparseMixer's"}.get(r.score, "p")
    weights += f" / their sum{f', that of the last {weighed} included' if weighed else ''}" if r.renormalize else ""
    weights += f" * {r.scale:g}" if r.scale != 1 else ""
    weights += " * a learned factor of e" if isinstance(r.normalize, Norm) else ""
    chosen = f"the {r.top_k} best{groups}{' by p + b' if r.bias else ''}"
    chosen = f"the {r.top_k} of the token, in a table of {hashed}" if hashed else chosen
    return [f"p = {score}({logits}) in fp32; e: {chosen}; weights {weights}"]


PARTS: dict[type, Callable[[Any, int], list[str]]] = {
    GQA: _gqa,
    MLA: _mla,
    Compressed: compressed,
    GatedDeltaNet: scanned.delta,
    ChannelDelta: scanned.channels,
    GatedConv: scanned.conv,
    StateSpace: scanned.state_space,
    SelectiveScan: scanned.selective,
    GatedRecurrence: scanned.gated,
    Beside: _beside,
    Fronted: scanned.fronted,
    GatedMLP: _gated,
    MLP: _mlp,
    MoE: _moe,
}
