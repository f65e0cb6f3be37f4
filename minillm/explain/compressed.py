"""The equations of compressed attention, with a model's numbers in them."""

from __future__ import annotations

from minillm.explain.scanned import w
from minillm.spec import Compressed, Entries, YarnScaling


def compressed(a: Compressed, hidden: int) -> list[str]:
    turning, groups = a.rope.dim, a.num_heads // a.groups
    scaled = ", scaled: Yarn" if isinstance(a.rope.scaling, YarnScaling) else ""
    lines = [
        f"c = n({w(a.q_rank, hidden)} u), q = {w(a.num_heads * a.head_dim, a.q_rank)} c: {a.num_heads} heads of "
        f"{a.head_dim}, each divided by its root mean square; k = n({w(a.head_dim, hidden)} u), which is v too",
        f"the last {turning} values of q and k rotated by position, base {a.rope.theta:g}{scaled}",
    ]
    also = ""
    if a.entries is not None:
        lines += _entries(a.entries, a.q_rank, hidden)
        best = f" among the {a.entries.indexer.top_k} with the best s" if a.entries.indexer else ""
        also = f", and over entries e < (i + 1) / {a.entries.span}{best}"
    return [
        *lines,
        f"o_i = sum over i - {a.window} < j <= i{also} of softmax_j({a.head_dim**-0.5:.4g} q_i k_j) k_j, and a learned "
        f"sink that only counts in the softmax; the last {turning} values of each head rotated back",
        f"a_i = {w(hidden, a.groups * a.group_rank)} {w(a.group_rank, groups * a.head_dim)} o_i, the latter for each "
        f"of {a.groups} groups of {groups} heads",
    ]


def _entries(made: Entries, q_rank: int, hidden: int) -> list[str]:
    two = f", those of the {made.span} positions before with matrices of their own" if made.overlaps else ""
    lines = [
        f"k_e = n(sum over the {made.reach} positions j that end with {made.span} e + {made.span - 1} of "
        f"softmax_j({w(made.size, hidden)} u_j + p_j) * {w(made.size, hidden)} u_j){two}; rotated as position "
        f"{made.span} e"
    ]
    if (chosen := made.indexer) is not None:
        size, heads = chosen.head_dim, chosen.num_heads
        lines.append(
            f"s_ie = sum over {heads} heads of ({w(heads, hidden)} u / {heads**0.5:.4g}) relu({size**-0.5:.4g} "
            f"{w(heads * size, q_rank)} c_i m_e), both rotated, m_e computed like k_e, of {size} values"
        )
    return lines
