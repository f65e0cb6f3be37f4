"""Mixtures whose config.json contradicts itself or the weights: one error that says what and where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.families import resolve
from minillm.model.moe import Router
from tests.helpers import tiny
from tests.helpers.blocks import SCHEME
from tests.helpers.tiny import refused_by_command

MIXTRAL = "model.layers.1.block_sparse_moe."
LONG = {"rope_type": "longrope", "rope_theta": 9.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
WHOLE = "expected an integer from 1 to"
# What is wrong: the family, the keys of config.json, and what the error must say.
CONFIGS: dict[str, tuple[Any, ...]] = {
    "none per token": ("mixtral", {"num_experts_per_tok": 0}, f"num_experts_per_tok is 0, {WHOLE} 65536"),
    "more than all": ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok 6 is more than the 5 experts"),
    "a text": ("mixtral", {"num_experts_per_tok": "2"}, f"num_experts_per_tok is '2', {WHOLE}"),
    "one and a half": ("mixtral", {"num_experts_per_tok": 1.5}, f"num_experts_per_tok is 1.5, {WHOLE}"),
    "no experts": ("mixtral", {"num_local_experts": 0}, f"num_local_experts is 0, {WHOLE}"),
    "a million experts": ("mixtral", {"num_local_experts": 10**6}, f"num_local_experts is 1000000, {WHOLE} 65536"),
    "one expert more": (
        "mixtral",
        {"num_local_experts": 6},
        "9 parameters no tensor fills: layers.0.ffn.experts.gate_up[5.gate]",
        f"{MIXTRAL}gate.weight is [5, 48], the config needs [6, 48]",
    ),
    "one expert less": (
        "mixtral",
        {"num_local_experts": 4},
        "9 tensors no rule claims: model.layers.0.block_sparse_moe.experts.4.w1.weight",
        f"{MIXTRAL}gate.weight is [5, 48], the config needs [4, 48]",
    ),
    "uneven groups": ("deepseek_v3", {"n_group": 3}, "n_group 3 does not divide the 8 experts"),
    "groups of one": ("deepseek_v3", {"n_group": 8}, "8 groups of one expert each; the group score needs two"),
    "more than all groups": ("deepseek_v3", {"topk_group": 5}, "topk_group 5 is more than the 4 groups"),
    "no groups": ("deepseek_v3", {"n_group": 0}, f"n_group is 0, {WHOLE}"),
    "no chosen groups": ("deepseek_v3", {"topk_group": 0}, f"topk_group is 0, {WHOLE}"),
    "small groups": ("deepseek_v3", {"topk_group": 1}, "num_experts_per_tok 3 is more than the 2 experts to choose"),
    "small groups, V2": (
        "deepseek_v2",
        {"topk_group": 1},
        "num_experts_per_tok 3 is more than the 2 experts to choose",
    ),
    "groups unsaid": ("deepseek_v2", {"n_group": None}, f"n_group is None, {WHOLE}"),
    "score": ("deepseek_v3", {"scoring_func": "tanh"}, "scoring_func is 'tanh', supported are sigmoid"),
    "score, V2": ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid', supported are softmax"),
    "method": ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy', supported are noaux_tc"),
    "method, V2": (
        "deepseek_v2",
        {"topk_method": "best"},
        "topk_method is 'best', supported are greedy, group_limited",
    ),
    "factor": (
        "deepseek_v3",
        {"routed_scaling_factor": float("nan")},
        "not valid JSON (NaN is no number)",
    ),
    "renormalised": ("deepseek_v3", {"norm_topk_prob": 1}, "norm_topk_prob is 1, expected true or false"),
    "experts of all layers": (
        "mixtral",
        {"num_local_experts": 65536, "num_hidden_layers": 100},
        "100 layers of 65536 experts; the limit is 262144 in all",
    ),
    "two numbers of experts": (
        "mixtral",
        {"num_local_experts": 5, "num_experts": 6},
        "num_experts is 6 and num_local_experts is 5; they mean the same",
    ),
    "renormalised, V2": ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is true; the authors' code"),
    "factors that are no list": (
        "mixtral",
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 9.0, "short_factor": 1, "long_factor": 2}},
        "longrope needs a short_factor and a long_factor, lists of the same length",
    ),
    "a factor that is no number": (
        "mixtral",
        {"rope_parameters": {**LONG, "factor": "a"}},
        "rope factor is 'a', expected a number",
    ),
    "an original context of one": (
        "mixtral",
        {"rope_parameters": {**LONG, "factor": 4.0, "original_max_position_embeddings": 1}},
        "original_max_position_embeddings is 1, longrope needs 2 or more",
    ),
    "predicted layers": ("deepseek_v3", {"num_nextn_predict_layers": "x"}, f"layers is 'x', {WHOLE} 64"),
    "many predicted layers": ("deepseek_v3", {"num_nextn_predict_layers": 1000}, f"layers is 1000, {WHOLE} 64"),
    "every other layer": ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2; only 1"),
    "dense layers": ("deepseek_v3", {"first_k_dense_replace": -1}, "first_k_dense_replace is -1, expected a number"),
    "no dense layer": (
        "deepseek_v3",
        {"first_k_dense_replace": 0},
        "3 tensors no rule claims: model.layers.0.mlp.down_proj.weight",
        "parameters no tensor fills: layers.0.ffn.router.weight",
    ),
    "minus one shared": ("deepseek_v3", {"n_shared_experts": -1}, "n_shared_experts is -1, expected a small number"),
    "one shared": (
        "deepseek_v3",
        {"n_shared_experts": 1},
        "model.layers.1.mlp.shared_experts.gate_proj.weight is [40, 48], the config needs [20, 48]",
    ),
    "width of an expert": (
        "deepseek_v3",
        {"moe_intermediate_size": 21},
        "54 tensors of another shape: model.layers.1.mlp.experts.0.down_proj.weight is [48, 20], ",
        "and 48 more",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(mixtures: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, changes, *messages = CONFIGS[case]
    folder = Path(shutil.copytree(mixtures / family, tmp_path / family))
    tiny.edit_config(folder, **changes)
    refused_by_command(folder, capsys, *messages)


@pytest.mark.parametrize(
    ("scheme", "named"),
    [
        (
            {**SCHEME, "weight_block_size": [64, 64]},
            "weight_block_size [64, 64], fmt e4m3 (supported: [128, 128] and e4m3)",
        ),
        ({**SCHEME, "fmt": "e5m2"}, "fmt e5m2"),
        ({"quant_method": "aqlm", "bits": 4}, "aqlm"),
    ],
    ids=["blocks", "format", "method"],
)
def test_other_schemes(
    mixtures: Path, scheme: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(mixtures / "deepseek_v3", tmp_path / "deepseek_v3"))
    tiny.edit_config(folder, quantization_config=scheme)
    refused_by_command(folder, capsys, f"quantised with {scheme['quant_method']}", named, "unquantised checkpoint")


@settings(max_examples=200)
@given(st.integers(0, 12), st.integers(0, 8), st.integers(0, 5), st.integers(0, 5))
def test_a_router_is_refused_or_works(experts: int, top_k: int, groups: int, top_groups: int) -> None:
    """Whatever the four numbers: an error that names config.json, or distinct experts of few enough groups."""
    sizes = {"n_routed_experts": experts, "num_experts_per_tok": top_k, "n_group": groups, "topk_group": top_groups}
    possible = min(sizes.values()) > 0 and experts % groups == 0 and groups >= top_groups
    if not possible or top_k > experts // groups * top_groups or 1 < groups == experts:
        with pytest.raises(ValueError, match=r"config\.json: "):
            resolve({"model_type": "deepseek_v3", **sizes})
        return
    decoder, _, _ = resolve({"model_type": "deepseek_v3", **sizes})
    generator = torch.Generator().manual_seed(0)
    router = Router(decoder.layers[-1].ffn.router, 8)
    torch.nn.init.normal_(router.weight, generator=generator)
    chosen, weights, *_ = router(torch.randn(20, 8, generator=generator))
    assert chosen.shape == weights.shape == (20, top_k)
    assert all(len(set(row)) == top_k and 0 <= min(row) <= max(row) < experts for row in chosen.tolist())
    assert all(len({e // (experts // groups) for e in row}) <= top_groups for row in chosen.tolist())
    assert weights.isfinite().all()
    assert (weights > 0).all()
