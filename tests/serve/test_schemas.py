"""schemathesis for seconds; `python -m tests.serve.schemas` has it for longer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import minillm
from minillm.serve.app import ROUTES
from minillm.serve.models import Served
from tests.helpers.server import Running
from tests.serve.schemas import CACHE, command

pytest.importorskip("schemathesis", reason="asks what the document allows: pip install schemathesis")


def test_nothing_that_the_document_allows_is_a_fault(llm: minillm.LLM, tmp_path: Path) -> None:
    server = Running(Served(llm, minillm.Engine(llm, cache_memory=int(CACHE)), ["demo"]), fold_system=True)
    try:
        words = command(server.url, 1, "--generation-deterministic")
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:]
        asked = {each["path"] for each in server.log}
        assert asked >= {path for _, path, _ in ROUTES if path != "/health" and "{" not in path}
        made = re.search(r"(\d+) generated, \1 passed", done.stdout)
        assert made is not None
        assert int(made[1]) > 500
        assert not [each for each in server.log if "fault" in each]
        assert server.idle()
    finally:
        server.stop()
        server.service.close()
