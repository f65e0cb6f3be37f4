"""Models whose matrices are held as integers: what a load makes of them, what their products are, what a folder keeps.

The quantisers are tested number by number against the formula of the format, written here with loops; a streamed load
against the same quantisers over the plain parameters; and the model against one that has the dequantised ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import config, families, generate, loading, quantize
from minillm.explain import __main__ as explain
from minillm.model import held as quantised
from minillm.model.costs import active_values, bytes_per_step
from minillm.model.decoder import next_token_loss
from minillm.ops.stacked import GroupedMatrices
from minillm.report import writing
from minillm.weights import holding, ints
from minillm.weights import save as saving
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.ints import Int4, Int8
from tests.conftest import exit_code
from tests.helpers import tiny
from tests.helpers.blocks import SCALE, SCHEME, formula, read, write
from tests.helpers.blocks import quantise as to_fp8
from tests.helpers.values import values as plain_values

FAMILIES = [
    "llama",
    "gemma2",
    "mixtral",
    "qwen2_moe",
    "deepseek_v3",
    "gpt_neox",
    "gpt_oss",
    "phi",
    "gemma3n",
    "gemma4",
    "gemma4-experts",
]
SCHEMES = {
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int4 of 5 with zeros": {"quantize": "int4", "group_size": 5, "symmetric": False},
}
EXACT = 2e-5  # as in test_laws.py: fp32, the same sums in another order


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family's tiny checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("plain")
    tiny.save(folder, *tiny.ROWS[request.param])
    return folder


def parameters(llm: minillm.LLM) -> dict[str, Tensor]:
    return dict(llm.model.named_parameters())


def formats(options: dict, llm: minillm.LLM) -> dict[str, Int8 | Int4]:
    return quantised.integers(llm.model, scheme(options))


def scheme(options: dict) -> Int8 | Int4:
    return ints.scheme(options["quantize"], options.get("group_size"), options.get("symmetric", True))


@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_a_load_quantises_what_a_plain_load_gives(plain: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in blocks of a few rows: a row's numbers depend on no other row. What is not held stays as it was,
    and the model computes what one computes whose matrices are the dequantised ones."""
    monkeypatch.setattr(holding, "PIECE", 1000)
    dense = minillm.load(plain, "float32", kernels="reference")
    held = minillm.load(plain, "float32", kernels="reference", **SCHEMES[name])
    made, found, chosen = formats(SCHEMES[name], dense), parameters(held), parameters(dense)
    assert any("experts" in name or "head" in name or "embedding" in name for name in made)
    for key, values in chosen.items():
        if key not in made:
            assert torch.equal(found.pop(key), values), key
            continue
        fields = made[key].quantise(values.flatten(0, -2))
        for ending, part in made[key].form.pack(fields).items():
            assert torch.equal(found.pop(f"{key}{ending}").view(part.shape), part), f"{key}{ending}"
        values.copy_(made[key].form.values(fields).view(values.shape))
    assert not found
    given = tiny.tokens(dense.spec.vocab_size, 2, 11)
    assert (held.model(given) - dense.model(given)).abs().max() <= EXACT * dense.model(given).abs().max()


@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_a_folder_by_its_formula(plain: Path, name: str, tmp_path: Path) -> None:
    """Its tensors read number by number, as versions before this one wrote and read them: W = (q - z) s f, in the rows
    of the model. Held for the loops or for plain PyTorch, and dequantised, it is the model of these numbers."""
    quantize.quantize(plain, tmp_path / "made", scheme(SCHEMES[name]))
    stored = load_file(tmp_path / "made/model.safetensors")
    dense = minillm.load(plain, "float32", kernels="reference").model
    expected = {}
    rules = families.resolve(config.read(plain))[1]
    for tensor, to in Checkpoint(plain).plan(rules, dense.destinations()).assignments.items():
        if f"{tensor}_scale" not in stored:
            continue
        q, scale = stored[tensor], stored[f"{tensor}_scale"].double()
        if q.dtype == torch.uint8:
            six = q.dim() == 3  # embedding and head, whose two high bits are in the last third of a row
            high = torch.stack([q[:, -1] >> n & 3 for n in (0, 2, 4, 6)], -1).flatten(1) if six else 0
            low = q[:, :2].flatten(1) if six else q
            q = torch.stack((low & 15, low >> 4), -1).flatten(1) + 16 * high
            group = torch.arange(q.shape[1]) // (16 if six else SCHEMES[name].get("group_size", 16))
            zero = stored[f"{tensor}_zero"].double()[:, group] if f"{tensor}_zero" in stored else 32.0 if six else 8.0
            made = (q.double() - zero) * scale[:, group] * stored[f"{tensor}_factor"].double()[:, None]
        else:
            made = q.double() * scale[:, None]
        expected.setdefault(to.parameter, {})[to.start] = made
    assert expected
    for options in ({}, {"kernels": "reference"}, {"keep_quantized": False}):
        got = plain_values(minillm.load(tmp_path / "made", "float32", **options).model)
        for parameter, pieces in expected.items():
            rows = torch.cat([pieces[start] for start in sorted(pieces)])[:, : got[parameter].shape[-1]]
            assert ((got[parameter].double().flatten(0, -2) - rows).abs() <= 2.0**-23 * rows.abs()).all(), parameter


@pytest.mark.parametrize(("family", "stays"), [("qwen2_moe", "shared_gate.weight"), ("deepseek_v3", "kv_up")])
def test_what_is_not_held(family: str, stays: str, tmp_path: Path) -> None:
    """Routers, the gate of a shared expert, and what latent attention needs as plain matrices; nothing else."""
    tiny.save(tmp_path, *tiny.ROWS[family])
    found = parameters(minillm.load(tmp_path, quantize="int8"))
    matrices = {name: each for name, each in found.items() if each.dim() > 1 and not name.endswith("_scale")}
    floats = {name for name, each in matrices.items() if each.is_floating_point()}
    assert floats == {name for name in found if name.endswith(("router.weight", stays))}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_folder_keeps_it(
    plain: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit what a load makes, from several files too; explain finds nothing wrong."""
    expected = parameters(minillm.load(plain, **SCHEMES[name]))
    monkeypatch.setattr(saving.save_as, "__defaults__", (20_000,))
    report = quantize.quantize(plain, tmp_path / "made", scheme(SCHEMES[name]))
    assert len(list((tmp_path / "made").glob("model-*-of-*.safetensors"))) > 1
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "made").glob("*.safetensors"))
    found = parameters(minillm.load(tmp_path / "made"))
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        assert found[key].dtype == numbers.dtype, key
        assert torch.equal(found[key], numbers), key
    told, before = explain.explain(tmp_path / "made"), explain.explain(plain)
    assert told["quantization"] == "minillm"
    assert {key for key in told if told[key] != before[key]} == {"weights", "quantization", "dropped_tensors"} - {
        "dropped_tensors" if told["dropped_tensors"] == before["dropped_tensors"] else ""
    }
    capsys.readouterr()
    assert generate.main(["--weights", str(tmp_path / "made"), "--prompt-ids", "1", "--quantize", "int8"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "integers already" in err


@pytest.mark.parametrize("name", SCHEMES)
def test_fp8_is_dequantised_and_then_quantised(name: str, tmp_path: Path) -> None:
    """On load and in a folder, as the checkpoint with the dequantised values is, whatever is not held included."""
    tiny.save(tmp_path / "base", *tiny.ROWS["deepseek_v3"])
    named, config = read(tmp_path / "base")
    stored, dense = dict(named), dict(named)
    for key in [key for key in named if key.endswith(("proj.weight", "mlp.gate.weight", "kv_b_proj.weight"))]:
        stored[key], stored[key + SCALE] = to_fp8(named[key], torch.float32)
        dense[key] = formula(stored[key], stored[key + SCALE]).float()
    write(tmp_path / "fp8", stored, {**config, "quantization_config": SCHEME})
    write(tmp_path / "dense", dense, config)
    expected = parameters(minillm.load(tmp_path / "dense", **SCHEMES[name]))
    quantize.quantize(tmp_path / "fp8", tmp_path / "made", scheme(SCHEMES[name]))
    for found in (minillm.load(tmp_path / "fp8", **SCHEMES[name]), minillm.load(tmp_path / "made")):
        assert all(torch.equal(numbers, expected[key]) for key, numbers in parameters(found).items())


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_bytes_of_a_step(name: str, tmp_path: Path) -> None:
    """Those of the parts: of the experts' only the chosen ones', of the embedding none."""
    tiny.save(tmp_path, *tiny.ROWS["mixtral"])
    model = minillm.load(tmp_path, quantize=name).model
    share = model.layers[0].ffn.router.spec
    expected = 0
    for key, values in model.named_parameters():
        if key.startswith("embedding."):
            continue
        active = values.numel() * share.top_k / share.num_experts if ".experts." in key else values.numel()
        expected += int(active) * values.element_size()
    assert bytes_per_step(model) == pytest.approx(expected, rel=1e-3)
    assert set(active_values(model)) == {key for key, _ in model.named_parameters()}
    experts = quantised.matrices(model.layers[0].ffn.experts, "gate_up", torch.float32)
    assert isinstance(experts, GroupedMatrices)
    shape = experts.parts["_scale"].shape[0], experts.outputs
    assert shape == (share.num_experts, 2 * model.layers[0].ffn.experts.spec.intermediate_size)


def test_the_loss_of_a_quantised_head_is_that_of_its_logits(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of two words too, which is all that is there at once then."""
    model, words = minillm.load(saved, dtype="float32", quantize="int8").model, tiny.tokens(97, 1, 9)
    for most in (2**26, 2 * 97):
        monkeypatch.setattr("minillm.model.decoder.MOST_LOGITS", most)
        assert model.loss(words).item() == pytest.approx(next_token_loss(model(words), words).item(), rel=1e-6)


def test_values_that_are_hard() -> None:
    """Rows of zeros, one value alone, groups of nothing but one sign, subnormals: no NaN, and zero stays zero."""
    rows = torch.zeros(6, 40)
    rows[1, 3], rows[2] = 2.0, 1e-42
    rows[3] = torch.linspace(3, 4, 40)
    rows[4, :16], rows[5, 16:] = -5.0, torch.linspace(-1, 0, 24)
    for made in (Int8(), Int4(), Int4(16, symmetric=False), Int4(64)):
        found = made.form.values(made.quantise(rows))
        assert found.isfinite().all()
        assert (found[0] == 0).all()
        assert found[1, 3] == pytest.approx(2.0, rel=0.01)
        assert (found[3] - rows[3]).abs().max() <= 0.3


def test_ranges_are_searched() -> None:
    """The squared error is well below that of the plain range, whose factor is the largest value over -8: over ten
    draws 0.85 to 0.88 of it."""
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    made = Int4().form.values(Int4().quantise(w))
    groups = w.view(64, 4, 16)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    plain = (groups / (extreme / -8)).round().clamp(-8, 7) * (extreme / -8)
    ours, theirs = ((x.view(64, 4, 16) - groups).square().sum() for x in (made, plain))
    assert ours <= 0.9 * theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "int4", "--group-size", "0"], "group size is 0"),
        (["--quantize", "int8", "--asymmetric"], "go with int4"),
        (["--quantize", "int3"], "invalid choice"),
        ([], "--quantize"),
    ],
)
def test_bad_requests_write_nothing(
    saved: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(saved), "--output", str(tmp_path / "made"), *arguments]
    code = exit_code(quantize.main, command)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_complete_or_not_there(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(writing, "complete", fails)
    (tmp_path / "source").mkdir()
    for file in saved.iterdir():
        (tmp_path / "source" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "source/generation_config.json").write_text("{}")
    with pytest.raises(OSError, match="no space"):
        quantize.quantize(tmp_path / "source", tmp_path / "new/folder/made", ints.scheme("int8"))
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_was_tampered_with(saved: Path, tmp_path: Path) -> None:
    """A companion that lacks or has another shape, and a scheme of another version: one error that names it."""
    quantize.quantize(saved, tmp_path / "made", ints.scheme("int4"))
    named = load_file(tmp_path / "made/model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    for changed, message in (
        ({key: each for key, each in named.items() if key != f"{name}_factor"}, f"{name}_factor is missing"),
        ({**named, f"{name}_scale": named[f"{name}_scale"][:, :1].contiguous()}, f"{name}_scale is [48, 1]"),
        ({**named, name: named[name].float()}, f"{name} is F32, integers makes it U8"),
    ):
        save_file(changed, tmp_path / "made/model.safetensors")
        tiny.refused(tmp_path / "made", message)
    config = json.loads((tmp_path / "made/config.json").read_text())
    tiny.edit_config(tmp_path / "made", quantization_config={**config["quantization_config"], "bits": 3})
    tiny.refused(tmp_path / "made", "write the folder again")
    assert loading.integers(saved, {}) is None
