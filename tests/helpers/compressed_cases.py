"""Rows of `rows.py` and spaces of `spaces.py` for attention over entries and several streams."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from tests.helpers.sizes import YARN

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "head_dim": 18,
    "partial_rotary_factor": 8.5 / 18,  # of which transformers takes the whole number of values
    "q_lora_rank": 28,
    "o_groups": 3,
    "o_lora_rank": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "layer_types": [HEAVY, SPARSE, SLIDING, SPARSE],
    "compress_rates": {SPARSE: 3, HEAVY: 7},
    "sliding_window": 9,
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "index_n_heads": 5,
    "index_head_dim": 14,
    "index_topk": 4,
    "hc_mult": 3,
    "hc_sinkhorn_iters": 4,
    "hc_eps": 1e-3,
    "swiglu_limit": 0.6,
    "routed_scaling_factor": 1.7,
    "rope_theta": 500.0,
    "compress_rope_theta": 900.0,
    "rope_scaling": YARN,
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v4": ("deepseek_v4", SIZES),
    "deepseek_v4-all": (
        "deepseek_v4",
        {
            **SIZES,
            "compress_rates": {SPARSE: 4, HEAVY: 8},
            "index_topk": 64,
            "hc_mult": 4,
            "mlp_layer_types": ["moe", "hash_moe", "moe", "moe"],
            "scoring_func": "sigmoid",
            "rope_scaling": None,
        },
    ),
}


def random_tables(model: nn.Module, generator: torch.Generator) -> None:
    """Of tokens, each of which goes to different experts."""
    for module in model.modules():
        if hasattr(module, "tid2eid"):
            drawn = torch.rand(len(module.tid2eid), module.num_experts, generator=generator)
            module.tid2eid.copy_(drawn.topk(module.top_k).indices)


@st.composite
def compressed(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    turned, count = 2 * draw(st.integers(1, 4)), draw(st.integers(2, 8))
    rates = {SPARSE: draw(st.integers(1, 4)), HEAVY: draw(st.integers(1, 9))}
    head_dim = turned + draw(st.integers(0, 10))
    kinds, mlps = (
        st.lists(st.sampled_from(each), min_size=layers, max_size=layers) for each in ((*rates, SLIDING), MLPS)
    )
    size = st.integers(1, 20)
    return {
        "num_key_value_heads": 1,
        "head_dim": head_dim,
        "partial_rotary_factor": min((turned + 0.5) / head_dim, 1.0),
        "q_lora_rank": draw(size),
        "o_groups": draw(st.sampled_from([each for each in range(1, heads + 1) if heads % each == 0])),
        "o_lora_rank": draw(size),
        "n_routed_experts": count,
        "num_experts_per_tok": draw(st.integers(1, count)),
        "layer_types": draw(kinds),
        "mlp_layer_types": draw(mlps),
        "compress_rates": rates,
        "sliding_window": max(2 * rates[SPARSE], rates[HEAVY]) + draw(st.integers(0, 6)),
        "index_n_heads": draw(st.integers(8, 10)),  # of few heads none may be above 0, and entries tie
        "index_head_dim": turned + draw(st.integers(0, 8)),
        "index_topk": draw(st.integers(1, 8)),
        "hc_mult": draw(st.integers(1, 4)),
        "hc_sinkhorn_iters": draw(st.integers(1, 5)),
        "swiglu_limit": draw(st.floats(0.3, 9.0)),
        "routed_scaling_factor": draw(st.floats(0.5, 4.0)),
        "rope_theta": draw(st.floats(20.0, 1e6)),
        "compress_rope_theta": draw(st.floats(20.0, 1e6)),
        "rope_parameters": None,
        "scoring_func": draw(st.sampled_from(("sqrtsoftplus", "sigmoid"))),
        "tie_word_embeddings": False,
    }


MLPS = ("hash_moe", "moe")
SPACES = {"deepseek_v4": compressed}
