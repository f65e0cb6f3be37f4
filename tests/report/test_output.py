"""Files that a flag asks for: whole or not there, and never written through what lies in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from minillm.guard import writing
from minillm.guard.writing import complete
from minillm.report import page


def test_a_file_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    page.write(path, "title", "body")
    before = path.read_bytes()

    def stop() -> None:
        with complete(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """One in the place of the file is replaced; no name on the way is known beforehand, for another."""
    victim, path = tmp_path / "victim", tmp_path / "page.html"
    victim.write_text("precious")
    path.symlink_to(victim)
    names = []
    for _ in range(2):
        with complete(path) as file:
            names.append(file.name)
            file.write(b"page")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("precious", "page", False)
    assert len(set(names)) == 2
    assert sorted(tmp_path.iterdir()) == [path, victim]


def test_what_is_in_the_way_of_the_new_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the name was guessed."""
    monkeypatch.setattr(writing.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".guessed.part").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError), complete(tmp_path / "page.html"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        page.write(tmp_path / "page.html", "title", "body")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o640


def test_an_error_names_the_file_and_its_cause(tmp_path: Path) -> None:
    """Though there is nothing left to clean up, which is an error too."""

    def fill() -> None:
        with complete(tmp_path / "page.html") as file:
            Path(file.name).unlink()
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*page\.html'"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "pipe", "nowhere", "home", "suffix"])
def test_a_place_that_is_none_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = {"nowhere": tmp_path / "none/a.html", "home": Path("~/a.html"), "suffix": tmp_path / "a.htm"}.get(
        kind, tmp_path / "a.html"
    )
    if kind in ("folder", "pipe"):
        (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    with pytest.raises(ValueError, match=r"^--html "):
        page.check(path)
