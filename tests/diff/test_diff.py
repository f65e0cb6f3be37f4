"""`diff` finds nothing where there is nothing, and names the module, the side and the cause where something was put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import minillm
from minillm.diff import __main__ as diff
from minillm.diff import trace as diff_trace
from minillm.diff.compare import step_of
from minillm.diff.names import Site
from minillm.diff.replay import replay
from minillm.diff.trace import Trace
from minillm.llm import LLM
from tests.helpers import tiny
from tests.helpers.seeded_bugs import BUGS, NEGATIVE

# The largest own error of any module is 19 ulps, over all rows here: a tolerance of 64 is over three times that.
LARGEST = 32.0
# Families whose oracle is another class, or holds the decoder inside another model: its modules have other names than
# the checkpoint's tensors, which is what pairs are made by. Then those whose class has a factor in another module than
# the decoder here, and one that transformers does not run while its modules are watched.
NAMED_OTHERWISE = {"qwen2_vl", "qwen2_5_vl", "exaone", "qwen", "chatglm", "internlm2", "minimax_m3_vl", "openelm"}
NAMED_OTHERWISE |= {"glm5_next", "step3p7", "gpt_neox_japanese"}
FACTORED_OTHERWISE, NOT_WATCHED = {"laguna", "minicpm3", "muse_glimmer"}, {"llama4_text"}
FACTORED_OTHERWISE |= {"cohere2_moe", "granite_swa", "granitemoe_swa", "inkling_text", "inkling_mm_model"}
APART = NAMED_OTHERWISE | FACTORED_OTHERWISE | NOT_WATCHED
COMPARED = [row for row, (family, _) in tiny.ROWS.items() if family not in APART]
# What the oracles of tests/helpers/oracles_plamo.py call what the checkpoint names otherwise.
PLAMO = {
    "layers.layers.": "layers.", ".mixer.": ".self_attn.", "pre_mixer_norm": "input_layernorm",
    "post_mixer_norm": "post_attention_layernorm", "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of a row and transformers' model of it, made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def of(row: str) -> tuple[Path, Any]:
        if row not in made:
            folder = tmp_path_factory.mktemp("diff")
            made[row] = folder, tiny.save(folder, *tiny.ROWS["deepseek_v3" if row == NEGATIVE else row])
            if row == NEGATIVE:
                lower_corrections(folder)
                made[row] = folder, tiny.reference(folder)
        return made[row]

    return of


def lower_corrections(folder: Path) -> None:
    """So far that the scores that experts are chosen by are below 0."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: t - 2 * name.endswith("e_score_correction_bias") for name, t in tensors.items()}, path, {"format": "pt"}
    )


def traced(llm: LLM, theirs: Any) -> tuple[Trace, list[Site]]:
    family = oracles_family(llm)
    sites = diff.sites_of_transformers(llm, theirs, PLAMO if family.startswith("plamo") else None)
    if family == "plamo":  # the oracle has k and v once for each query head
        sites = [site for site in sites if site.part not in ("k_proj", "v_proj")]
    return diff_trace.of_transformers(theirs, tiny.tokens(97, 2, 40), sites), sites


def examined(llm: LLM, theirs: Any) -> diff.Finding:
    return diff.examine(llm, *traced(llm, theirs))


def oracles_family(llm: LLM) -> str:
    return str(minillm.config.read(llm.folder)["model_type"])


@pytest.mark.parametrize("row", COMPARED)
def test_every_family_agrees(row: str, tmp_path: Path) -> None:
    """Module by module. And the replay in fp64 is right: every op of every kind of module, on both sides, is within
    rounding of it."""
    theirs = tiny.save(tmp_path, *tiny.ROWS[row])
    llm = minillm.load(tmp_path, kernels="reference")
    trace, sites = traced(llm, theirs)
    found = diff.examine(llm, trace, sites)
    assert found.first is None
    names = {each.site.ours for each in found.rows}
    assert names >= wanted(llm, names)
    assert max(each.forced.max for each in found.rows) <= LARGEST
    step, ops = step_of(llm.model, trace), 0
    for site in sites:
        reordered = (
            row.startswith("plamo") and not row.startswith("plamo3") and site.ours.endswith(".attention")
        )  # heads
        if site.name in trace.gave and site.ours.split(".")[:2] != ["layers", "2"] and not reordered:
            for op in replay(llm.model, site, trace, step):
                assert max(op.ours.max, op.theirs.max) <= LARGEST, (site.ours, op)
                ops += 1
    assert ops >= (2 * 8 if llm.spec.attentions else 2 * 5)


def wanted(llm: LLM, names: set[str]) -> set[str]:
    """The modules that are compared at least, of those that bear one of two names that of `names`."""
    made = {"embedding", "norm", "head"}
    for i, layer in enumerate(llm.spec.layers):
        own = f"layers.{i}"
        made |= {own} | ({f"{own}.attention"} if len(layer.mixers) == 1 else set())  # two have no module of their own
        if layer.ffn is not None:
            made.add(f"{own}.ffn" if f"{own}.ffn" in names else f"{own}.ffn.experts")  # beside the MLP there
    return made


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_named(name: str, folders: Any) -> None:
    bug = BUGS[name]
    folder, theirs = folders(bug.row)
    llm = minillm.load(folder, kernels="reference", dtype="float32")
    llm.model = bug.breaks(llm.model)
    found = examined(llm, theirs)
    assert found.first is not None
    assert found.first.site.ours == bug.module, found
    assert any(bug.words in text for text in ["", *found.causes, *found.signs]), (found.causes, found.signs)
    if bug.module.endswith("router"):  # the others send their tokens where the reference did
        assert {row.site.ours.rpartition(".")[2] for row in found.rows if row.diverges(diff.TOLERANCE)} == {"router"}


@pytest.mark.parametrize(
    ("name", "op", "side"),
    [
        ("LayerNorm without its mean", "norm", "ours"),
        ("q and k normalised behind the rotation", "k, normed and turned", "ours"),
        ("kv heads tiled", "weighted sum of values", "ours"),
        ("the next token seen", "weighted sum of values", "ours"),
        ("logits as weights", "weights of the chosen", "ours"),
        ("other groups masked with 0", "choice", "ours"),
        ("another base", "q, normed and turned", "theirs"),
        ("mscale² left out", "softmax of scores", "theirs"),
        ("exact gelu for its approximation", "products and activation", "theirs"),
        ("w1 and w3 change places", "weighted sum", "theirs"),
        ("shared expert without its gate", "sum with the shared expert", "theirs"),
        ("logits without their cap", "product", "theirs"),
    ],
)
def test_the_side_that_is_off_is_named(name: str, op: str, side: str, folders: Any) -> None:
    """An op that runs otherwise than the spec says is ours; where ours follows another spec, theirs is off that."""
    bug = BUGS[name]
    folder, theirs = folders(bug.row)
    llm = minillm.load(folder, kernels="reference", dtype="float32")
    llm.model = bug.breaks(llm.model)
    found = examined(llm, theirs)
    off = {each.name: each.off(diff.TOLERANCE) for each in found.ops if each.off(diff.TOLERANCE)}
    assert op == "weighted sum of values" or "weighted sum of values" not in off  # a score is no sum
    assert next(iter(off.items())) == (op, side) or (op == "k, normed and turned" and off[op] == side)
