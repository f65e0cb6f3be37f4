"""The equations of a state space, with a model's numbers in them."""

from __future__ import annotations

from minillm.spec import StateSpace


def w(rows: int, columns: int) -> str:
    return f"W[{rows} x {columns}]"


def state_space(a: StateSpace, hidden: int) -> list[str]:
    inner, group, number = (w(a.parts[part], hidden) for part in "xbd")
    bias, (low, high) = " + b" if a.bias else "", a.limits
    z, x, b, c, d = ("" if each == 1 else f"{each:g} " for each in a.factors)
    kept = f"max({low:g}, softplus(d + t))" if low else "softplus(d + t)"
    kept = kept if high is None else f"min({high:g}, {kept})"
    shared = f", each B and C for {a.num_heads // a.num_groups} heads" if a.num_groups != a.num_heads else ""
    groups = f", the mean over each of {a.num_groups} parts" if a.num_groups > 1 else ""
    read = f"(w v / sqrt(mean v² + {a.norm.eps:g})){groups}" if a.norm else "v"
    return [
        f"z = {z}{inner} u{bias}, r = {x}{inner} u{bias}, B = {b}{group} u{bias}, C = {c}{group} u{bias}, "
        f"d = {d}{number} u{bias}: {a.num_heads} heads of {a.head_dim}, {a.num_groups} of B and C of "
        f"{a.state_size}{shared}",
        f"r, B, C: silu of a weighted sum of the last {a.conv_kernel} positions{' + b' if a.conv_bias else ''}",
        f"d = {kept}, with numbers t, A and D for each head",
        f"S = e^(-d e^A) S + d B rᵀ: a state of {a.state_size} x {a.head_dim} for each head",
        "v = (Sᵀ C + D r) * silu(z)",
        f"a = {w(hidden, a.num_heads * a.head_dim)} {read}{bias}",
    ]
