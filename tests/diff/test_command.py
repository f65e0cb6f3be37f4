"""`python -m minillm.diff` as one uses it: against transformers, against another checkpoint, with bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm import quantize
from minillm.diff import __main__ as diff
from minillm.diff import trace
from minillm.diff.compare import compare
from minillm.diff.names import same
from tests.conftest import exit_code, shared
from tests.helpers import tiny

KEYS = {
    "weights", "against", "quantize", "dtype", "tokens", "tolerance_ulps", "ulp", "agrees", "first_divergence",
    "first_divergence_part", "causes", "signs", "ops", "modules", "not_compared", "lose_most",
}  # fmt: skip
ROW_KEYS = {
    "module", "part", "reference", "own_ulps", "running_ulps", "route_flips", "unexplained_flips",
    "running_route_flips", "diverges",
}  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    tiny.save(folder, *tiny.ROWS["qwen2_moe"])
    return folder


def reported(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert diff.main([*arguments, "--json", "--kernels", "reference"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == KEYS
    assert all(set(row) == ROW_KEYS for row in found["modules"])
    return found


def test_the_layers_of_a_gguf_file_that_lose_most(capsys: pytest.CaptureFixture[str]) -> None:
    """Matrices of one or two bits are where most is lost: each of the zoo's is of another kind of blocks."""
    file, base = shared("quant/gguf/zoo-llama-256"), shared("quant/base/story-llama-256")
    found = reported(capsys, "--weights", str(file), "--against", str(base))
    own = {row["module"]: row["own_ulps"]["relative"] for row in found["modules"] if row["part"] is None}
    layers = sorted((f"layers.{i}" for i in range(4)), key=lambda name: -own[name])
    assert [each["layer"] for each in found["lose_most"]] == layers[:3]
    for each in found["lose_most"]:
        inner = [name for name in own if name.startswith(each["layer"] + ".") and name.count(".") == 3]
        assert each["module"] == max(inner, key=own.__getitem__)
    assert diff.main(["--weights", str(file), "--against", str(base)]) == 0
    assert f"layers that lose most, of all, and where: {layers[0]} " in capsys.readouterr().out


def test_against_transformers(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(capsys, "--weights", str(mixture))
    assert (found["agrees"], found["first_divergence"], found["not_compared"]) == (True, None, [])
    assert (found["tokens"], found["dtype"], found["ops"]) == (32, "float32", [])
    names = [row["module"] for row in found["modules"]]
    assert names[0] == "embedding"
    assert names[-3:] == ["layers.2", "norm", "head"]
    gate = next(row for row in found["modules"] if row["part"] == "gate_proj")
    assert (gate["module"], gate["reference"]) == (
        "layers.0.ffn.shared.gate_up", "model.layers.0.mlp.shared_expert.gate_proj",
    )  # fmt: skip


def test_trained_checkpoints_agree(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("stories260K", "stories-deepseek-v3", "stories-gemma2"):
        assert reported(capsys, "--weights", str(shared(f"checkpoints/{name}")))["agrees"], name


def test_a_divergence_reads_well(
    mixture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says where, which side of which op, and why; in colour on a terminal only."""
    load = diff.load

    def broken(*given: Any, **options: Any) -> Any:
        llm = load(*given, **options)
        llm.model.layers[1].ffn.shared.down.weight.mul_(1.5)
        return llm

    monkeypatch.setattr(diff, "load", broken)
    assert diff.main(["--weights", str(mixture), "--kernels", "reference"]) == 0
    out = capsys.readouterr().out
    assert "first divergence: layers.1.ffn.shared.down\n" in out
    assert "theirs is off the formula" in out
    assert "the reference's is ours x 0.6667" in out
    assert "\x1b" not in out


def test_against_itself_in_integers(mixture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing differs from itself; int4 is further off than int8, and errors grow with depth."""
    same_one = reported(capsys, "--weights", str(mixture), "--against", str(mixture))
    assert same_one["agrees"]
    assert {row["own_ulps"]["max"] for row in same_one["modules"]} == {0.0}
    logits = {}
    for kind in ("int8", "int4"):
        picture = tmp_path / f"{kind}.png"
        found = reported(
            capsys, "--weights", str(mixture), "--against", str(mixture), "--quantize", kind, "--plot", str(picture)
        )
        assert (found["first_divergence"], found["quantize"]) == ("embedding", kind)
        assert picture.read_bytes().startswith(b"\x89PNG")
        logits[kind] = next(row["running_ulps"]["relative"] for row in found["modules"] if row["module"] == "head")
    assert 0 < logits["int8"] < logits["int4"] / 4


def test_another_spec_is_the_cause(mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where both specs are known, what differs is said, whatever it is: no experiment has to find it."""
    other = Path(shutil.copytree(mixture, tmp_path / "theta"))
    tiny.edit_config(other, rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    found = reported(capsys, "--weights", str(mixture), "--against", str(other))
    assert found["first_divergence"] == "layers.0.attention"
    assert found["causes"] == ["rope.theta is 10000.0 here, 12345.0 there"]
    tiny.edit_config(other, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, num_experts_per_tok=2)
    for pair in ((mixture, other), (other, mixture)):
        found = reported(capsys, "--weights", str(pair[0]), "--against", str(pair[1]))
        assert found["first_divergence"] == "layers.0.ffn.router"
        assert "experts for a token here" in found["signs"][0]
        assert found["causes"][0].startswith("top_k is")


@pytest.mark.parametrize(
    ("row", "tensor", "module"),
    [
        ("gemma3n", "per_layer_model_projection.weight", "per_layer.model"),
        ("gemma3n", "embed_tokens_per_layer.weight", "per_layer.embedding"),
        ("gemma3n", "layers.1.per_layer_input_gate.weight", "layers.1.per_layer.gate"),
        ("gemma3n", "layers.1.altup.correct_output_scale", "layers.1"),
        ("gemma3n", "layers.1.laurel.linear_left.weight", "layers.1.low_rank.down"),
        ("gemma4", "per_layer_projection_norm.weight", "per_layer.norm"),
    ],
)
def test_another_weight_is_found_beside_attention_and_mlp(
    row: str, tensor: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In what layers are told of a token, in streams, in a product of low rank: modules that take more than a row."""
    tiny.save(tmp_path / "one", *tiny.ROWS[row])
    other = Path(shutil.copytree(tmp_path / "one", tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors[f"model.{tensor}"] *= 1.5
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    found = reported(capsys, "--weights", str(tmp_path / "one"), "--against", str(other))
    assert found["first_divergence"] == module


def test_low_precision_is_said_to_hide(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff.main(["--weights", str(mixture), "--kernels", "reference", "--dtype", "bfloat16"]) == 0
    assert "in bfloat16 that is 50% of a row's size: compare in float32 to be sure" in capsys.readouterr().out
    assert diff.main(["--weights", str(mixture), "--kernels", "reference"]) == 0
    assert "to be sure" not in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.parametrize("row", ["granite", "gpt2", "gemma3n", "gemma4", "qwen3_next"])
def test_every_module_agrees_with_itself(row: str, tmp_path: Path) -> None:
    """What no hook sees is put together as the model does it: sums with their factors, tables that take tokens."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    model = minillm.load(tmp_path, kernels="reference").model
    of_itself = trace.of_minillm(model, tiny.tokens(97, 2, 20))
    rows = compare(model, of_itself, same(model), 1.0)
    assert {each.site.ours for each in rows} >= {f"layers.{i}.ffn_norm" for i in range(len(model.layers))}
    assert {each.site.ours: each.forced.max for each in rows if each.forced.max} == {}


@torch.no_grad()
def test_route_flips_are_counted(mixture: Path) -> None:
    """A router that differs by itself, and one that differs because of what comes before."""
    llm, other = (minillm.load(mixture, kernels="reference") for _ in range(2))
    other.model.layers[0].attention.out.weight.mul_(-1)
    tokens = tiny.tokens(97, 2, 20)
    finding = diff.examine(llm, trace.of_minillm(other.model, tokens), same(llm.model))
    assert finding.first is not None
    assert finding.first.site.ours == "layers.0.attention.out"
    routers = [row for row in finding.rows if row.site.ours.endswith("router")]
    assert [row.flips for row in routers] == [0, 0, 0]
    assert all(row.free_flips > 0 for row in routers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nowhere/at-all"], "nowhere/at-all"),
        (["--weights", "{folder}", "--against", "{other}"], "give another checkpoint of the same model"),
        (["--weights", "{folder}", "--prompt", "text"], "no tokenizer"),
        (["--weights", "{folder}", "--prompt-ids", "1,97"], "goes from 0 to 96"),
        (["--weights", "{folder}", "--prompt-ids", "1"], "takes 2 to 128"),
        (["--weights", "{folder}", "--tolerance", "0"], "above 0"),
        (["--weights", "{folder}", "--tolerance", "nan"], "'nan' is not a number"),
        (["--weights", "{integers}"], "does not read these integers"),
        (["--weights", "{folder}", "--plot", "error.pdf"], "a picture is a .png file"),
        (["--weights", "{folder}", "--against-dtype", "float32"], "goes with another checkpoint"),
        (["--weights", "{tanuki}"], "transformers cannot load"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, mixture: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    if "{other}" in arguments:
        tiny.save(other, "llama", {"num_hidden_layers": 2})
    if "{tanuki}" in arguments:
        tiny.save(tmp_path / "tanuki", *tiny.ROWS["tanuki"])
    if "{integers}" in arguments:
        quantize.main(["--weights", str(mixture), "--output", str(tmp_path / "integers"), "--quantize", "int8"])
    places = {"{folder}": mixture, **{f"{{{each}}}": tmp_path / each for each in ("other", "tanuki", "integers")}}
    capsys.readouterr()
    assert exit_code(diff.main, [str(places.get(each, each)) for each in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minillm: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_ids_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        diff.main(["--prompt-ids", "1,x"])
    assert "'1,x' is not a list of ids such as 1,2,3" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["own head", "no beginning"])
def test_files_that_transformers_reads_too(
    kind: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tied config over another head, and the names of an inner model: the same pairs as of the published file."""
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    if kind == "own head":
        tiny.edit_config(folder, tie_word_embeddings=True)
    else:
        named = load_file(folder / "model.safetensors")
        save_file({name.removeprefix("model."): each for name, each in named.items()}, folder / "model.safetensors")
    found, expected = (reported(capsys, "--weights", str(each)) for each in (folder, saved))
    assert found["agrees"]
    assert [row["module"] for row in found["modules"]] == [row["module"] for row in expected["modules"]]
