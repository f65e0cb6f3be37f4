"""The equations of layers with several residual streams, or embeddings of their own, with a model's numbers in them."""

from __future__ import annotations

from minillm.explain.scanned import w
from minillm.spec import HyperConnections, PerLayer, Streams


def foreseen(s: Streams, hidden: int) -> list[str]:
    """What a layer starts from where there are several streams x_0, x_1, ..., of which it works on the first."""
    return [
        f"r(t) = tanh({w(s.count, hidden)} n(t) / {hidden})",
        f"z_j = x_j + sum_i C_ji x_i, C = {w(s.count**2, s.count)} r(x_0), for streams 0 to {s.count - 1}; x = z_0",
    ]


def corrected(s: Streams) -> list[str]:
    return [f"y_j = z_j + (1 + c_j) (y - z_0), c = {w(s.count, s.count)} r(y)"]


def told(p: PerLayer, hidden: int, streams: bool) -> list[str]:
    """What is added where layers have embeddings of their own; e is the first layer's x."""
    y, into = ("(w y_0)", "y_j = y_j") if streams else ("y", "y = y")
    return [
        f"p = (n({w(p.size, hidden)} e / {hidden**0.5:.4g}) + {p.size**0.5:.4g} row of the token in a table of "
        f"{p.vocab_size} x {p.layers} x {p.size}) / sqrt(2), e the first layer's x",
        f"{into} + n({w(hidden, p.size)} ({p.activation}({w(p.size, hidden)} {y}) * p))"
        + (", j > 0" if streams else ""),
    ]


def around(s: HyperConnections, hidden: int) -> list[str]:
    """What a part of a layer is given of streams x_0, x_1, ..., and how it is taken in."""
    n = s.count
    names, sizes = ("a, b, C", f"{n}, {n}, {n} x {n}") if s.rounds else ("a, b", f"{n}, {n}")
    kept = f"b = {s.most:g} sigmoid(b){'' if s.rounds else f' + {s.eps:g}'}"
    mixed = (
        f", C = softmax(C) by rows + {s.eps:g}, then {s.rounds} times columns, {s.rounds - 1} times rows, in turn, "
        "divided by their sums"
    )
    return [
        f"before each part: t = {w(sum(s.parts), n * hidden)} r, r = x / sqrt(mean x² + {s.norm.eps:g}) of all streams",
        f"{names} = s t + c, {sizes} of them: a = sigmoid(a) + {s.eps:g}, {kept}{mixed if s.rounds else ''}; "
        "then x = sum_i a_i x_i",
    ]


def taken_in(s: HyperConnections, made: str) -> str:
    """How the streams take in what a part has made."""
    return f"x_j = b_j {made} + {'sum_i C_ij x_i' if s.rounds else 'x_j'}"
