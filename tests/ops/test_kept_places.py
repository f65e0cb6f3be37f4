"""Where compiled loops are kept: in a place that this user alone can write, under a name of all that decides them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm.ops.cpu import kept
from minillm.ops.cpu.loops import jit
from tests.test_structure import imports


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path | None]:
    """The root that is found, given what can be written: `home`, `temporary`, and variables."""
    (tmp_path / "file").touch()

    def found(home: bool = False, temporary: bool = True, **variables: str) -> Path | None:
        for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        monkeypatch.setenv("HOME", str(tmp_path / ("home" if home else "file/home")))
        monkeypatch.setattr(kept.tempfile, "tempdir", str(tmp_path / ("temporary" if temporary else "file/temporary")))
        (tmp_path / "temporary").mkdir(exist_ok=True)
        folder = kept.folder()
        return folder and folder.relative_to(tmp_path).parents[2]

    return found


# What loops import besides each other: none of it comes to be in their code.
NEEDLESS = {"minillm.ops.cpu.kept", "minillm.ops.cpu.usable", "minillm.guard.screen"}
OWN = Path(f"temporary/minillm-{os.geteuid()}")


def test_the_first_place_that_can_be_written(places: Any) -> None:
    assert places(home=True, NUMBA_CACHE_DIR="numba", XDG_CACHE_HOME="xdg") == Path("numba")
    assert places(home=True, NUMBA_CACHE_DIR="file/numba", XDG_CACHE_HOME="xdg") == Path("xdg")
    assert places(home=True) == Path("home/.cache")
    assert places(XDG_CACHE_HOME="file/xdg") == OWN
    assert places() == OWN
    assert places(temporary=False) is None


def test_a_place_relative_to_the_current_folder_is_none(
    places: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That may be a checkpoint's, with loops in it that its author has compiled."""
    monkeypatch.chdir(tmp_path / "..")
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        assert places(home=True) == Path("home/.cache")
        monkeypatch.setenv(name, "relative")
        found = kept.folder()
        assert found is not None
        assert found.is_relative_to(tmp_path / "home/.cache")
        assert not Path("relative").exists()
    (tmp_path / "temporary").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "temporary")  # which Python takes for want of any other
    assert places() is None


def test_nobody_knows_of_a_home(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert places() == OWN


def test_what_others_may_have_written_is_not_run(places: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places() == OWN
    assert (tmp_path / OWN).stat().st_mode & 0o777 == 0o700
    (tmp_path / OWN).chmod(0o770)
    assert places() is None
    (tmp_path / OWN).chmod(0o700)
    (tmp_path / OWN).rename(tmp_path / "elsewhere")
    (tmp_path / OWN).symlink_to(tmp_path / "elsewhere")
    assert places() is None
    (tmp_path / OWN).unlink()
    (tmp_path / "home/.cache/minillm").mkdir(parents=True)
    (tmp_path / "home/.cache/minillm").chmod(0o777)
    assert places(home=True) == OWN
    (tmp_path / "home/.cache/minillm").chmod(0o755)
    assert places(home=True) == Path("home/.cache")
    (tmp_path / "home").chmod(0o777)
    assert places(home=True) == OWN  # as others may put a folder in the place of this one
    (tmp_path / "home").chmod(0o1777)
    assert places(home=True) == Path("home/.cache")
    monkeypatch.setattr(kept, "_user", lambda: os.geteuid() + 1)
    assert places(home=True) is None


def test_the_name_covers_what_decides_the_code(places: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All sources of the loops, which take nothing from elsewhere, what compiles them and its settings."""
    names = set()

    def another() -> bool:
        assert places(home=True) == Path("home/.cache")
        before, found = len(names), kept.folder()
        assert found is not None
        names.add(found.name)
        return len(names) > before

    assert another()
    assert not another()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert not another()
    monkeypatch.setenv("NUMBA_OPT", "0")
    assert another()
    monkeypatch.setattr(kept.numba, "__version__", "0.0")
    assert another()
    loops = tmp_path / "ops/loops"
    shutil.copytree(Path(jit.__file__).parent, loops, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "ops/kept.py"))
    assert not another()
    for path in loops.glob("*.py"):
        taken = {name for name in imports(path) if name.startswith("minillm")}
        assert {name for name in taken if not name.startswith("minillm.ops.cpu.loops")} <= NEEDLESS
        path.write_text(path.read_text() + "\n")
        assert another(), path
    shutil.rmtree(loops)
    assert kept.folder() is None
