"""Text that stdout's encoding has no characters for: none of it is lost, and what is JSON stays JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TEXT = "a é 语 \U0001f600 \udcff"
PROGRAM = f"""
import json, sys
from minillm import cli
def main():
    print(json.dumps({{"text": {TEXT!a}}}, ensure_ascii=False))
    print({TEXT!a})
    return 0
sys.exit(cli.run(main))
"""


def printed(**variables: str) -> tuple[bytes, str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "LC_ALL")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, env={**environment, **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.decode()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932", "latin-1:strict", "utf-8"])
def test_an_encoding_that_was_asked_for(encoding: str) -> None:
    """It stays, with escapes for what it lacks, said once: here of UTF-8 the half of a pair alone."""
    out, err = printed(PYTHONIOENCODING=encoding)
    name = encoding.partition(":")[0]
    first, second = out.decode(name).splitlines()
    assert json.loads(first)["text"] == json.loads(f'"{second}"') == TEXT
    assert ("é" in second) == (name not in ("ascii", "cp932"))
    assert ("语" in second) == (name == "utf-8")
    assert err.count("\n") == 1
    assert "lacks characters of this text: set PYTHONIOENCODING=utf-8" in err


def test_what_was_asked_for_instead_stays() -> None:
    out, err = printed(PYTHONIOENCODING="ascii:replace")
    assert (out.split(b"\n")[1].strip(), err) == (b"a ? ? ? ?", "")


def test_a_pipe_gets_utf8() -> None:
    """Whatever the locale has."""
    out, _ = printed(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert out.decode().splitlines()[1] == TEXT.replace("\udcff", "\\udcff")
