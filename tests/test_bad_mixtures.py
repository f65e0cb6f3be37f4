"""Mixtures of experts and FP8 checkpoints that are damaged or contradict themselves: `load` raises one error that says
what and where, and the command line prints it as one line and exits with 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_cli import start
from tiny import refused
from torch import Tensor

from minillm import generate
from minillm.families import resolve
from minillm.moe import Router

Tensors = dict[str, Tensor]
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
EXPERT = "model.layers.1.mlp.experts.3."
DOWN, UP = f"{EXPERT}down_proj.weight", f"{EXPERT}up_proj.weight"  # of one block each
MIXTRAL = "model.layers.1.block_sparse_moe."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, with 5 experts and with 8 in 4 groups; not to be changed."""
    folder = tmp_path_factory.mktemp("mixtures")
    for family in ("mixtral", "deepseek_v2", "deepseek_v3"):
        tiny.save(folder / family, *tiny.ROWS[family])
    return folder


def check(folder: Path, messages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(folder, *messages)
    capsys.readouterr()
    assert generate.main(["--weights", str(folder), "--prompt-ids", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minillm: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for message in messages:
        assert message in err


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
        "routed_scaling_factor is nan, expected a number",
    ),
    "renormalised": ("deepseek_v3", {"norm_topk_prob": 1}, "norm_topk_prob is 1, expected true or false"),
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
def test_configs(checkpoints: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, changes, *messages = CONFIGS[case]
    folder = Path(shutil.copytree(checkpoints / family, tmp_path / family))
    tiny.edit_config(folder, **changes)
    check(folder, messages, capsys)


@pytest.mark.parametrize(
    "scheme",
    [
        {**FP8, "weight_block_size": [64, 64]},
        {**FP8, "fmt": "e5m2"},
        {**FP8, "quant_method": "fbgemm_fp8"},
        {"quant_method": "fp8"},
        {"quant_method": "gptq", "bits": 4},
    ],
    ids=["blocks", "format", "method", "no blocks", "gptq"],
)
def test_other_schemes(
    checkpoints: Path, scheme: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoints / "deepseek_v3", tmp_path / "deepseek_v3"))
    tiny.edit_config(folder, quantization_config=scheme)
    check(folder, [f"quantised with {scheme['quant_method']}", "use the unquantised checkpoint"], capsys)


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda named: {name: tensor for name, tensor in named.items() if part not in name}


def copied(old: str, new: str) -> Callable[[Tensors], Tensors]:
    """Those tensors with `old` in their names a second time, as `new`."""
    return lambda named: named | {n.replace(old, new): t.clone() for n, t in named.items() if old in n}


def in_fp8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> Callable[[Tensors], Tensors]:
    """DOWN in FP8, its factors of this shape."""
    return lambda named: {**named, DOWN: named[DOWN].to(dtype), f"{DOWN}_scale_inv": torch.ones(shape)}


# What is wrong: the family, what is done to its tensors, and what the error must say.
TENSORS: dict[str, tuple[Any, ...]] = {
    "an expert is missing": (
        "mixtral",
        without(f"{MIXTRAL}experts.3."),
        "3 parameters no tensor fills: layers.1.ffn.experts.gate_up[3.gate], layers.1.ffn.experts.gate_up[3.up], "
        "layers.1.ffn.experts.down[3]",
    ),
    "part of one is missing": ("deepseek_v3", without(UP), "no tensor fills: layers.1.ffn.experts.gate_up[3.up]"),
    "all are missing": (
        "deepseek_v3",
        without(".experts."),
        "48 parameters no tensor fills: layers.1.ffn.experts.gate_up[0.gate]",
        "and 42 more",
    ),
    "no router": ("mixtral", without(f"{MIXTRAL}gate"), "no tensor fills: layers.1.ffn.router.weight"),
    "no correction": ("deepseek_v3", without("2.mlp.gate.e_score"), "no tensor fills: layers.2.ffn.router.bias"),
    "an expert beyond the last": (
        "mixtral",
        copied(f"{MIXTRAL}experts.4.", f"{MIXTRAL}experts.5."),
        f"3 tensors no rule claims: {MIXTRAL}experts.5.w1.weight, {MIXTRAL}experts.5.w2.weight, "
        f"{MIXTRAL}experts.5.w3.weight",
    ),
    "an expert numbered twice": (
        "deepseek_v3",
        copied(EXPERT, EXPERT.replace("3", "03")),
        "3 tensors no rule claims: model.layers.1.mlp.experts.03.down_proj.weight",
    ),
    "two names for one matrix": (
        "deepseek_v3",
        copied("layers.1.self_attn.q_b_proj", "layers.1.self_attn.q_proj"),
        "1 tensors for a parameter filled already: model.layers.1.self_attn.q_",
    ),
    "another shape": (
        "deepseek_v3",
        lambda named: {**named, DOWN: torch.zeros(48, 19)},
        f"{DOWN} is [48, 19], the config needs [48, 20]",
    ),
    "more blocks": ("deepseek_v3", in_fp8(1, 2), f"{DOWN}_scale_inv is [1, 2], blocks of 128 x 128 need [1, 1]"),
    "one factor": ("deepseek_v3", in_fp8(), f"{DOWN}_scale_inv is [], blocks of 128 x 128 need [1, 1]"),
    "factors of rows": ("deepseek_v3", in_fp8(48, 1), f"{DOWN}_scale_inv is [48, 1], blocks of 128 x 128 need [1, 1]"),
    "factors missing": (
        "deepseek_v3",
        lambda named: {**in_fp8(1, 1)(named), UP: named[UP].to(torch.float8_e4m3fn)},
        f"1 FP8 tensors without their factors: {UP} (expected {UP}_scale_inv)",
    ),
    "all factors missing": (
        "deepseek_v3",
        lambda named: {**named, DOWN: named[DOWN].to(torch.float8_e4m3fn)},
        f"{DOWN} is F8_E4M3",
        "is it quantised?",
    ),
    "factors of a plain matrix": (
        "deepseek_v3",
        in_fp8(1, 1, dtype=torch.float32),
        f"factors of a tensor that is not FP8: {DOWN}_scale_inv: {DOWN} is F32",
    ),
    "factors of another FP8": (
        "deepseek_v3",
        in_fp8(1, 1, dtype=torch.float8_e5m2),
        f"factors of a tensor that is not FP8: {DOWN}_scale_inv: {DOWN} is F8_E5M2",
    ),
    "factors of nothing": (
        "deepseek_v3",
        lambda named: without(DOWN)(named) | {f"{DOWN}_scale_inv": torch.ones(1, 1)},
        f"1 tensors no rule claims: {DOWN}_scale_inv",
        "1 parameters no tensor fills: layers.1.ffn.experts.down[3]",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(checkpoints: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(damaged(checkpoints, case, tmp_path), list(TENSORS[case][2:]), capsys)


def damaged(checkpoints: Path, case: str, tmp_path: Path) -> Path:
    family, damage, *_ = TENSORS[case]
    folder = Path(shutil.copytree(checkpoints / family, tmp_path / family))
    save_file(damage(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    tiny.edit_config(folder, quantization_config=FP8)
    return folder


@pytest.mark.parametrize("case", ["an expert is missing", "more blocks"])
def test_the_command_itself(checkpoints: Path, case: str, tmp_path: Path) -> None:
    """As users run it: the one line and nothing else."""
    process = start("--weights", str(damaged(checkpoints, case, tmp_path)), "--prompt-ids", "1")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1)
    assert err.startswith(b"minillm: error: ")
    assert TENSORS[case][2].encode() in err


def test_an_expert_in_two_shards(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(checkpoints / "mixtral", tmp_path / "mixtral"))
    named, twice = load_file(folder / "model.safetensors"), f"{MIXTRAL}experts.3.w1.weight"
    (folder / "model.safetensors").unlink()
    first, second = (f"model-0000{part}-of-00002.safetensors" for part in (1, 2))
    save_file(named, folder / first)
    save_file({twice: named[twice]}, folder / second)
    located = {**dict.fromkeys(named, first), twice: second}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    check(folder, [f"tensor '{twice}' is in both {first} and {second}"], capsys)


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
    chosen, weights, _ = router(torch.randn(20, 8, generator=generator))
    assert chosen.shape == weights.shape == (20, top_k)
    assert all(len(set(row)) == top_k and 0 <= min(row) <= max(row) < experts for row in chosen.tolist())
    assert all(len({e // (experts // groups) for e in row}) <= top_groups for row in chosen.tolist())
    assert weights.isfinite().all()
    assert (weights > 0).all()
