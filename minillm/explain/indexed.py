"""The equations of an indexer, with a model's numbers in them: which keys a query sees."""

from __future__ import annotations

from minillm.explain.scanned import w
from minillm.spec import GQA, MLA, BlockIndexer, Indexer


def seen(attention: GQA | MLA) -> str:
    """The keys j <= i that query i sees."""
    if attention.lender is not None and isinstance(attention, MLA):
        return f"j in the choice of layer {attention.lender}"
    return "j <= i" if attention.indexer is None else "j in C_i"


def choice(attention: GQA | MLA, hidden: int) -> list[str]:
    """How C_i is made."""
    made = attention.indexer
    if isinstance(made, Indexer) and isinstance(attention, MLA):
        return _keys(made, attention, hidden)
    return _blocks(made, attention, hidden) if isinstance(made, BlockIndexer) and isinstance(attention, GQA) else []


def _keys(made: Indexer, a: MLA, hidden: int) -> list[str]:
    pairs = "halves" if made.layout == "half" else "neighbours"
    return [
        f"indexer: p = {w(made.num_heads * made.head_dim, a.q_rank or hidden)} (q's latent), {made.num_heads} heads of "
        f"{made.head_dim}; m = LayerNorm({w(made.head_dim, hidden)} u), cached; e = {w(made.num_heads, hidden)} u; the "
        f"{'last' if made.last else 'first'} {a.rope.dim} values of p and m rotated like q, in pairs of {pairs}",
        f"C_i = the {made.top_k} j <= i with the highest sum over h of {made.num_heads**-0.5:.4g} e_ih "
        f"relu({made.head_dim**-0.5:.4g} p_ih m_j)",
    ]


def _blocks(made: BlockIndexer, a: GQA, hidden: int) -> list[str]:
    return [
        f"indexer: p = n({w(a.num_kv_heads * made.head_dim, hidden)} u), a head of {made.head_dim} for each kv head; "
        f"m = n({w(made.head_dim, hidden)} u), cached; both rotated like q and k",
        f"C_i = the j <= i in the {made.top_k} blocks of {made.size} with the highest p_i m_j of any j of theirs, "
        f"the last {made.local} among them",
    ]
