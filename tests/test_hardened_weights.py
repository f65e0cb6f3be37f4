"""What a folder may not do to a load or to `quantize`: values and factors that are no numbers, a quantization_config
that says other things than the tensors, links to files of the user's, writing that is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import quantize
from minillm.guard.writing import complete, new_folder, terminable
from minillm.weights import ints, load
from tests.conftest import ROOT
from tests.helpers import tiny
from tests.helpers.blocks import SCALE, SCHEME
from tests.helpers.blocks import quantise as fp8
from tests.helpers.tiny import refused

DOWN = "model.layers.0.mlp.down_proj.weight"


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    named = load_file(folder / "model.safetensors")
    edit(named)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def put(name: str, value: float, at: int = 3) -> Callable[[dict[str, Tensor]], None]:
    def edit(named: dict[str, Tensor]) -> None:
        named[name].view(-1)[at] = value

    return edit


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_values_that_are_no_numbers(name: str, value: float, folder: Path, tmp_path: Path) -> None:
    change(folder, put(name, value))
    refused(folder, "not finite in float32")
    for scheme in ("int8", "int4"):
        with pytest.raises(ValueError, match="not finite in float32"):
            minillm.load(folder, quantize=scheme)
        with pytest.raises(ValueError, match="not finite in float32"):
            quantize.quantize(folder, tmp_path / "made", ints.scheme(scheme))
    assert not list(tmp_path.glob("made*"))


def test_a_value_that_a_smaller_type_does_not_hold(folder: Path) -> None:
    change(folder, put("model.norm.weight", 1e6))
    minillm.load(folder)
    with pytest.raises(ValueError, match="not finite in float16"):
        minillm.load(folder, dtype="float16", kernels="reference")


def test_large_sums_and_many_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum beyond the type is none of the values; of many values some stretches are looked at."""
    load.check_finite("x", torch.full((100,), 3e38))
    for name, value in {"SMALL": 100, "STRETCH": 64, "LOOKED_AT": 8}.items():
        monkeypatch.setattr(load, name, value)
    change(folder, put(DOWN, float("nan"), at=64 + 3))
    refused(folder, "layers.0.ffn.down.weight: values that are not finite")


@pytest.mark.parametrize(
    ("kind", "ending", "value"),
    [
        ("int8", "_scale", float("nan")), ("int8", "_scale", -1), ("int8", "_scale", float("inf")),
        ("int4", "_scale", -128), ("int4", "_factor", float("nan")), ("int4", "_factor", -1), ("int4", "_zero", 16),
    ],
)  # fmt: skip
def test_factors_of_integers(kind: str, ending: str, value: float, saved: Path, tmp_path: Path) -> None:
    quantize.quantize(saved, tmp_path / "made", ints.scheme(kind, None, ending != "_zero"))
    minillm.load(tmp_path / "made")
    change(tmp_path / "made", put(DOWN + ending, value))
    refused(tmp_path / "made", f"{DOWN}{ending} has values that no factor has")


def as_fp8(named: dict[str, Tensor]) -> None:
    named[DOWN], named[DOWN + SCALE] = fp8(named[DOWN], torch.float32)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("kept", [True, False])
def test_factors_of_fp8(value: float, kept: bool, folder: Path) -> None:
    change(folder, as_fp8)
    tiny.edit_config(folder, quantization_config=SCHEME)
    minillm.load(folder, keep_quantized=kept)
    change(folder, put(DOWN + SCALE, value, at=0))
    with pytest.raises(ValueError, match=f"{DOWN}{SCALE} has values that no factor has"):
        minillm.load(folder, keep_quantized=kept)


@pytest.mark.parametrize("kept", [True, False])
def test_values_of_fp8_that_are_no_numbers(kept: bool, folder: Path) -> None:
    change(folder, as_fp8)
    tiny.edit_config(folder, quantization_config=SCHEME)
    change(folder, lambda named: named[DOWN].view(torch.uint8).view(-1)[5].fill_(255))
    with pytest.raises(ValueError, match="not finite"):
        minillm.load(folder, keep_quantized=kept)


@pytest.mark.parametrize(
    ("section", "tensors", "message"),
    [
        (SCHEME, as_fp8, ""),
        ({**SCHEME, "modules_to_not_convert": ["lm_head"]}, as_fp8, ""),
        ({**SCHEME, "bits": 3}, as_fp8, "quantization_config not understood and ignored: bits"),
        ({**SCHEME, "activation_scheme": "static"}, as_fp8, "ignored: activation_scheme 'static'"),
        (..., as_fp8, "no quantization_config: tensors with factors are read as FP8"),
        (SCHEME, lambda named: None, "says fp8, but no tensor is"),
    ],
)
def test_what_a_config_says_of_its_tensors(
    section: Any, tensors: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, tensors)
    tiny.edit_config(folder, quantization_config=section)
    minillm.load(folder)
    said = capsys.readouterr().err
    assert message in said
    assert bool(message) == ("quantization_config" in said)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("fp8", "quantization_config is 'fp8', expected an object"),
        (["fp8"], "expected an object"),
        ("", "expected an object"),
        ({"quant_method": "mxfp4"}, "quantization_config says mxfp4, but there are FP8 tensors"),
    ],
)
def test_a_config_that_contradicts_its_tensors(section: Any, message: str, folder: Path) -> None:
    change(folder, as_fp8)
    tiny.edit_config(folder, quantization_config=section)
    refused(folder, message)


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "config.json"])
def test_a_link_to_elsewhere_is_not_copied(name: str, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text((folder / name).read_text() if name == "config.json" else "{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    minillm.load(folder)  # reading it is no harm
    with pytest.raises(ValueError, match=f"{name}: a link to .*secret, out of the checkpoint"):
        quantize.quantize(folder, tmp_path / "made", ints.scheme("int8"))


def test_links_of_the_hubs_cache_and_of_weights(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots/1").mkdir(parents=True)
    (folder / "chat_template.jinja").write_text("T")
    for file in folder.iterdir():
        place = tmp_path if file.suffix == ".safetensors" else repo / "blobs"  # weights may lie on another disk
        file.rename(place / f"blob-{file.name}")
        (repo / "snapshots/1" / file.name).symlink_to(place / f"blob-{file.name}")
    quantize.quantize(repo / "snapshots/1", tmp_path / "made", ints.scheme("int8"))
    assert (tmp_path / "made/chat_template.jinja").read_text() == "T"
    assert not any(file.is_symlink() for file in (tmp_path / "made").iterdir())


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "model.safetensors", "added_tokens.json"])
def test_what_has_a_files_name_and_is_none(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    refused(folder, f"{name}: a folder, expected a file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    refused(folder, f"{name}: a pipe, expected a file")


def test_a_name_that_another_user_foresees(tmp_path: Path) -> None:
    """What is written goes to a new file: not through a link that lies ready."""
    (tmp_path / "victim").write_text("before")
    for name in ("x.partial", ".x.part", "x"):
        (tmp_path / name).symlink_to("victim")
    with complete(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_text() == "before"
    assert (tmp_path / "x").read_bytes() == b"new"
    assert not (tmp_path / "x").is_symlink()


def test_clearing_away_does_not_hide_the_cause(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), complete(tmp_path / "x") as file:  # noqa: PT012
        next(tmp_path.iterdir()).unlink()
        file.write(b"new")
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="cause"), new_folder(tmp_path / "a/b") as made:  # noqa: PT012
        made.rmdir()
        raise RuntimeError("cause")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_appears_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is there by now"), new_folder(tmp_path / "a") as made:  # noqa: PT012
        (made / "file").write_text("x")
        (tmp_path / "a").mkdir()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_clears_away(number: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import sys, os, signal, pathlib\n"
        "from minillm.guard.writing import new_folder\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # a test run under nohup ignores SIGHUP, and so would this
        "with new_folder(pathlib.Path(sys.argv[1]) / 'a/b') as made:\n"
        "    (made / 'file').write_text('x')\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, timeout=60)
    assert done.returncode == 128 + number
    assert not list(tmp_path.iterdir())


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_run_left_is_said(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made.0123abcd.partial").mkdir()
    quantize.quantize(saved, tmp_path / "made", ints.scheme("int8"))
    assert "made.0123abcd.partial was left by a run that was cut off" in capsys.readouterr().err
    assert json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]["format"] == "int8"
