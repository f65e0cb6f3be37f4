"""The equations of layers that keep a state, with a model's numbers in them."""

from __future__ import annotations

from minillm.spec import ChannelDelta, Fronted, GatedConv, GatedDeltaNet, GatedRecurrence, SelectiveScan, StateSpace


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


def delta(a: GatedDeltaNet, hidden: int) -> list[str]:
    keys, values, heads = a.num_k_heads * a.k_dim, a.num_v_heads * a.v_dim, f"{w(a.num_v_heads, hidden)} u"
    shared = f", each k head for {a.num_v_heads // a.num_k_heads} of v" if a.num_k_heads != a.num_v_heads else ""
    factor = "" if a.beta_factor == 1 else f"{a.beta_factor:g} "
    return [
        f"q, k = {w(keys, hidden)} u, v, z = {w(values, hidden)} u: {a.num_k_heads} heads of {a.k_dim} and "
        f"{a.num_v_heads} of {a.v_dim}{shared}",
        f"q, k, v: silu of a weighted sum of the last {a.conv_kernel} positions; q = q / (|q| {a.k_dim**0.5:.4g}), "
        "k = k / |k|",
        f"b = {factor}sigmoid({heads}), g = -e^A softplus({heads} + t): one each for a head of v",
        f"S = e^g S, then S = S + k (b (v - Sᵀ k))ᵀ: a state of {a.k_dim} x {a.v_dim} for each head of v",
        f"a = {w(hidden, values)} (w Sᵀ q / sqrt(mean (Sᵀ q)² + {a.norm.eps:g}) * silu(z))",
    ]


def channels(a: ChannelDelta, hidden: int) -> list[str]:
    made = f"{w(a.inner, a.rank)} {w(a.rank, hidden)} u" if a.rank else f"{w(a.inner, hidden)} u"
    rate = "-e^A softplus(y)" if a.bound is None else f"{a.bound:g} sigmoid(e^A y)"
    return [
        f"q, k, v = {w(a.inner, hidden)} u each: {a.num_heads} heads of {a.head_dim}",
        f"q, k, v: silu of a weighted sum of the last {a.conv_kernel} positions; q = q / (|q| {a.head_dim**0.5:.4g}), "
        "k = k / |k|",
        f"b = sigmoid({w(a.num_heads, hidden)} u), g = {rate}, y = {made} + t: one g for each value of k",
        f"S = diag(e^g) S, then S = S + k (b (v - Sᵀ k))ᵀ: a state of {a.head_dim} x {a.head_dim} for each head",
        f"a = {w(hidden, a.inner)} (w Sᵀ q / sqrt(mean (Sᵀ q)² + {a.norm.eps:g}) * sigmoid({made}))",
    ]


def conv(a: GatedConv, hidden: int) -> list[str]:
    return [
        f"b, c, v = {w(a.channels, hidden)} u each, v = b * v",
        f"v = a weighted sum of the last {a.conv_kernel} positions of v, with {a.conv_kernel} weights for each value",
        f"a = {w(hidden, a.channels)} (c * v)",
    ]


def selective(a: SelectiveScan, hidden: int) -> list[str]:
    inner, group, bias = w(a.channels, hidden), w(a.state_size, a.channels), " + b" if a.bias else ""
    normed = ""
    if a.norm:
        normed = f"; each then {'w ' if a.norm.affine else ''}v / sqrt(mean v² + {a.norm.eps:g})"
    return [
        f"z = {inner} u{bias}, x = {inner} u{bias}: {a.channels} channels",
        f"x: silu of a weighted sum of the last {a.conv_kernel} positions{' + b' if a.conv_bias else ''}",
        f"r = {w(a.step_rank, a.channels)} x, B = {group} x, C = {group} x{normed}",
        f"d = softplus({w(a.channels, a.step_rank)} r + t), with numbers t and D for each channel, A for each of S",
        f"S = e^(-d e^A) S + d x Bᵀ: a state of {a.state_size} for each channel",
        f"a = {w(hidden, a.channels)} ((S C + D x) * silu(z)){bias}",
    ]


def fronted(a: Fronted, hidden: int) -> list[str]:
    b = a.block
    q, kv, inner = b.attention.num_heads * b.attention.head_dim, b.attention.num_kv_heads * b.attention.head_dim, b.ffn
    turned = "" if b.attention.rope is None else f", q and k rotated by position, base {b.attention.rope.theta:g}"
    changed = f" + {w(q, b.rank)} {w(b.rank, 2 * hidden)} p for this layer" if b.changes_attention else ""
    whose = "its weights are this layer's" if b.of is None else f"with the weights of layer {b.of}"
    width = inner.intermediate_size
    return [
        f"p = n([u | e]), e the first layer's x: a block that layers share, {whose}",
        f"q = {w(q, 2 * hidden)} p{changed}, k, v = {w(kv, 2 * hidden)} p: {b.attention.num_heads} heads of "
        f"{b.attention.head_dim}{turned}",
        f"m_i = n({w(hidden, q)} sum over j <= i of softmax_j({b.attention.scores.scale or 1:.4g} q_i k_j) v_j)",
        f"g, r = {w(width, hidden)} m each + {w(2 * width, b.rank)} {w(b.rank, hidden)} m for this layer",
        f"u = n(u + {w(hidden, hidden)} {w(hidden, width)} ({inner.activation}(g) * r))",
        *state_space(a.recurrent, hidden),
    ]


def gated(a: GatedRecurrence, hidden: int) -> list[str]:
    inner, block = w(a.channels, hidden), f"{w(a.block_size, a.block_size)} x + b"
    return [
        f"v = {inner} u + b, x = {inner} u + b: {a.channels} channels",
        f"x: a weighted sum of the last {a.conv_kernel} positions + b",
        f"r = sigmoid({block}), i = sigmoid({block}) for each of {a.num_blocks} blocks of channels",
        "k = e^(-8 softplus(L) r), with a number L for each channel",
        "S = k S + sqrt(1 - k²) i x: a number for each channel; at the first position S = i x",
        f"a = {w(hidden, a.channels)} (S * {a.activation}(v)) + b",
    ]
