"""Integers: what they stand for, on load, in a folder of their own, and what they cost."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import perplexity, quantize
from minillm.model.held import held_in
from minillm.weights import ints
from minillm.weights.gguf import reader
from minillm.weights.gguf.mixtures import MIXTURES
from minillm.weights.ints import Int4, Int6, Int8
from tests.conftest import exit_code, shared
from tests.helpers import tiny


@pytest.mark.parametrize("shape", [(5, 64), (3, 100), (2, 7)])
def test_int8_is_at_most_half_a_step_off(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    fields = Int8().quantise(w)
    error = (Int8().form.values(fields) - w).abs()
    assert (error <= fields.scale / 2 * 1.00001).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, 32, 5])
def test_int4_by_its_formula(group: int, symmetric: bool) -> None:
    """Number by number, and no worse than rounding to 15 steps of the largest value."""
    w, integers = torch.randn(4, 70, generator=torch.Generator().manual_seed(2)), Int4(group, symmetric)
    fields = integers.quantise(w)
    parts, made = integers.pack(fields), integers.form.values(fields)
    for o in range(4):
        for i in range(70):
            byte = int(parts[""][o, i // 2])
            q, g = (byte >> 4 if i % 2 else byte & 15), i // group
            zero = 8 if symmetric else int(parts["_zero"][o, g])
            expected = (q - zero) * int(parts["_scale"][o, g]) * float(parts["_factor"][o])
            assert made[o, i] == pytest.approx(expected, rel=1e-6)
    largest = torch.stack([each.abs().amax(1) for each in w.split(group, 1)], 1)
    step = (largest / 7).repeat_interleave(group, 1)[:, :70]
    assert (made - w).square().sum() <= (step.square() / 12).sum() * 1.1


@pytest.mark.parametrize("columns", [64, 70, 17])
def test_int6_by_its_formula(columns: int) -> None:
    """Number by number as a folder keeps it, and at most half a step off, but for what the codes of factors round."""
    w = torch.randn(4, columns, generator=torch.Generator().manual_seed(3))
    fields = Int6().quantise(w)
    parts, made = Int6().pack(fields), Int6().form.values(fields)
    assert torch.equal(Int6().fields(parts, columns).apart().q, fields.q)
    for o in range(4):
        low = parts[""][o, :2].flatten()
        for i in range(columns):
            q = int(low[i // 2]) >> 4 * (i % 2) & 15 | (int(parts[""][o, 2, i // 4]) >> 2 * (i % 4) & 3) << 4
            expected = (q - 32) * int(parts["_scale"][o, i // 16]) * float(parts["_factor"][o])
            assert made[o, i] == pytest.approx(expected, rel=1e-6)
    step = torch.stack([each.abs().amax(1) for each in w.split(16, 1)], 1).repeat_interleave(16, 1)[:, :columns] / 31
    assert (made - w).square().sum() <= (step.square() / 12).sum() * 1.1


@pytest.mark.parametrize("tile", [1, 16])
@pytest.mark.parametrize("columns", [32, 96, 70])
@pytest.mark.parametrize("made", [Int4(), Int6(), Int4(5, False)], ids=str)
def test_what_a_folder_has_is_laid_out_as_what_was_quantised(made: Int4 | Int6, columns: int, tile: int) -> None:
    """Whole words of numbers at once, or one after the other where a row has to be filled up."""
    w, form = torch.randn(33, columns, generator=torch.Generator().manual_seed(4)), replace(made.form, tile=tile)
    fields = made.quantise(w)
    expected, found = form.pack(fields), form.pack(made.fields(made.pack(fields), columns))
    assert expected.keys() == found.keys()
    for name, part in expected.items():
        assert torch.equal(found[name], part), name


@pytest.mark.parametrize("older", ["int8", None])
def test_embedding_and_head_of_int4(saved: Path, tmp_path: Path, older: str | None) -> None:
    """They have 6 bits; a folder of an older version, which had them in int8, loads as it is, and is what it says."""
    outer = Int8() if older else Int6()
    quantize.quantize(saved, tmp_path / "made", Int4(outer=outer))
    section = json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]
    assert section["embedding_format"] == outer.name
    assert ints.read(section) == Int4(outer=outer)
    model = minillm.load(tmp_path / "made").model
    (segment,) = held_in(model.embedding)["weight"].segments
    assert replace(segment.form, tile=1) == outer.form
    plain = minillm.load(saved, kernels="reference").model.embedding.weight
    assert torch.equal(model.embedding(torch.arange(50)[None])[0], outer.form.values(outer.quantise(plain[:50])))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_folder_is_what_a_load_makes(
    saved: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit; and each held matrix is the plain one, quantised."""
    loaded = minillm.load(saved, quantize=name).model
    plain = minillm.load(saved, kernels="reference").model.get_parameter("layers.0.ffn.down.weight")
    made = tmp_path / "made"
    command = ["--weights", str(saved), "--output", str(made), "--quantize", name]
    assert quantize.main(command) == 0
    again = minillm.load(made).model
    for key, parameter in loaded.named_parameters():
        assert torch.equal(again.get_parameter(key), parameter), key
    down = loaded.layers[0].ffn.down
    (segment,) = held_in(down)["weight"].segments
    expected = segment.form.pack(ints.scheme(name).quantise(plain.float()))
    assert torch.equal(down.weight, expected[""])
    assert torch.equal(down.weight_scale, expected["_scale"])
    capsys.readouterr()
    assert quantize.main(command) == 2  # it is there already
    assert capsys.readouterr().err.count("\n") == 1
    prompt = [3, 5, 7]
    texts = [m.generate(prompt_ids=prompt, max_new_tokens=5, temperature=0).token_ids
             for m in (minillm.load(made), minillm.load(saved, quantize=name))]  # fmt: skip
    assert texts[0] == texts[1]


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.integers(3, 40),
    inner=st.integers(3, 40),
    made=st.one_of(st.builds(Int4, st.integers(1, 20), st.booleans()), st.just(Int8())),
)
def test_a_folder_of_any_width_is_read_back(hidden: int, inner: int, made: Int4 | Int8) -> None:
    """Also where bytes, of two numbers or of four, have room for more columns than there are."""
    with tempfile.TemporaryDirectory() as place:
        source, folder = Path(place) / "plain", Path(place) / "made"
        sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1, "head_dim": 4}
        tiny.save(source, "llama", {**sizes, "num_attention_heads": 1, "num_key_value_heads": 1})
        quantize.quantize(source, folder, made)
        group = {"group_size": made.group, "symmetric": made.symmetric} if isinstance(made, Int4) else {}
        expected = minillm.load(source, quantize=made.name, **group).model
        found = minillm.load(folder).model
        assert all(torch.equal(found.get_parameter(name), each) for name, each in expected.named_parameters())


def test_a_load_in_inference_mode(saved: Path, tmp_path: Path) -> None:
    """Which is of one thread, and others fill its tensors."""
    quantize.quantize(saved, tmp_path / "made", Int4())
    with torch.inference_mode():
        found = minillm.load(tmp_path / "made").model
    expected = minillm.load(tmp_path / "made").model
    assert all(torch.equal(found.get_parameter(name), each) for name, each in expected.named_parameters())


@pytest.mark.parametrize("bad", [{"quantize": "int3"}, {"group_size": 16}, {"quantize": "int8", "group_size": 16}])
def test_what_cannot_be_is_refused(saved: Path, bad: dict) -> None:
    with pytest.raises(ValueError, match=r"int8|int4|quantize"):
        minillm.load(saved, **bad)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.5), ("int4", 6.0)])
def test_what_it_costs(name: str, most: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Percent of perplexity, on a trained model."""
    text = str(shared("checkpoints/eval.txt"))
    weights = str(shared("checkpoints/stories-mixtral"))
    assert perplexity.main(["--weights", weights, "--text", text, "--quantize", name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["change_percent"] <= most
    assert report["change_percent"] == pytest.approx(
        100 * (report["after"]["perplexity"] / report["before"]["perplexity"] - 1)
    )


def test_a_file(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its line, its JSON, and that it is not written a second time or over its own source."""
    file, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    assert quantize.main(["--weights", str(saved), "--output", str(file), "--quantize", "q8_0"]) == 0
    size = f"{file.stat().st_size / 1e6:.1f} MB, before {(saved / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    assert f"a.gguf: {size}; " in (said := capsys.readouterr().out)
    assert said.endswith(" bits for each value\n")
    assert quantize.main(["--weights", str(file), "--output", str(other), "--quantize", "f16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == other.stat().st_size
    assert report["bytes_before"] == file.stat().st_size
    assert sum(report["kinds"].values()) == len(reader.read(other).entries)
    before = file.read_bytes()
    for source in (saved, file):
        assert quantize.main(["--weights", str(source), "--output", str(file), "--quantize", "q8_0"]) == 2
        assert "a.gguf: is there already; remove it or choose another --output" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--quantize q3 --output a.gguf", "invalid choice: 'q3'"),
        ("--quantize q8_0", "--output"),
        ("--output a.gguf", "--quantize"),
        ("--quantize q8_0 --output a", "--quantize q8_0 is for a GGUF file: let --output end in .gguf"),
        ("--quantize int4 --output a.gguf", "--output a.gguf is a GGUF file: say with --quantize in which kind"),
        ("--quantize q8_0 --output a.gguf --group-size 32", "go with --quantize int4"),
        ("--quantize q8_0 --output a.gguf --asymmetric", "go with --quantize int4"),
        ("--quantize q8_0 --output nowhere/a.gguf", "nowhere: no such folder; make it, or choose another --output"),
    ],
)
def test_a_file_that_cannot_be(
    arguments: str,
    words: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(quantize.main, ["--weights", str(saved), *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "invalid" not in words or all(kind in error for kind in ("int8", "int4", *MIXTURES))
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
