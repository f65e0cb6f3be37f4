"""`python -m minillm.serve`: its start, its flags, and how it stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from minillm import hub
from minillm.serve.__main__ import LOCAL, _catalog, _parse, _settings, main
from tests.conftest import ROOT, exit_code

BODY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 450, "ignore_eos": True, "stream": True}


class Command:
    """The server as a process of its own."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "minillm.serve", "--port", "0", "--threads", "1", "--cache-memory", "20000000"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"at (http://127\.0\.0\.1:\d+);", line):
                self.url = found[1]
                break
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()  # type: ignore[arg-type]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def command(request: pytest.FixtureRequest) -> Iterator[Command]:
    made = Command(*request.param)
    yield made
    made.process.kill()
    made.process.wait()


def texts(answer: httpx.Response, stop: Command | None = None) -> str:
    """All that a stream says; the server is told to stop at its first words."""
    found = ""
    for piece in answer.iter_text():
        if not found and stop is not None:
            stop.process.send_signal(signal.SIGTERM)
        found += piece
    return found


@pytest.mark.parametrize("command", [("--served-model-name", "a", "b")], indirect=True)
def test_it_stops_once_its_requests_have_ended(command: Command) -> None:
    with httpx.Client(timeout=60) as client, httpx.Client(timeout=60) as other:
        assert [each["id"] for each in other.get(command.url + "/v1/models").json()["data"]] == ["a", "b"]
        with client.stream("POST", command.url + "/v1/completions", json=BODY) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            command.process.send_signal(signal.SIGTERM)
            for _ in range(200):
                late = other.post(command.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1})
                if late.status_code == 503:
                    break
            text += "".join(pieces)
    assert (late.status_code, late.headers["x-should-retry"]) == (503, "true")
    assert text.endswith("data: [DONE]\n\n")
    assert json.loads(text.split("data: ")[-2])["choices"][0]["finish_reason"] == "length"
    assert command.process.wait(30) == 0
    assert not [line for line in command.said if "Traceback" in line]


@pytest.mark.parametrize("command", [("--drain-timeout", "0")], indirect=True)
def test_what_takes_too_long_ends_with_an_error(command: Command) -> None:
    with httpx.stream("POST", command.url + "/v1/completions", json=BODY, timeout=60) as answer:
        text = texts(answer, command)
    assert '"code":"shutting_down"' in text
    assert command.process.wait(30) == 0


def test_killed_in_the_middle_it_starts_again_at_its_address() -> None:
    """Nothing is left behind that would have to be repaired."""
    first = Command()
    with httpx.stream("POST", first.url + "/v1/completions", json=BODY, timeout=60) as answer:
        pieces = answer.iter_text()
        next(pieces)
        first.process.kill()
        with pytest.raises(httpx.TransportError):
            list(pieces)
    first.process.wait(30)
    again = Command("--port", first.url.rpartition(":")[2])
    try:
        assert again.url == first.url
        made = httpx.post(again.url + "/v1/completions", json={"prompt": "Once", "max_tokens": 2}, timeout=60)
        assert made.json()["usage"]["completion_tokens"] == 2
    finally:
        again.process.kill()
        again.process.wait()


def test_a_host_that_is_named_again_is_one() -> None:
    assert _settings(_parse(["--host", "127.0.0.1"]), False).hosts == LOCAL


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, word in {
            ("--port", port): "choose another",
            ("--port", "99999"): "--port",
            ("--max-batch", "0"): "at least 1",
            ("--drain-timeout", "-1"): "at least 0",
            ("--api-keys", str(tmp_path / "none")): "no such file",
            ("--port", "0", "--tool-style", "none-such"): "tagged",
            ("--port", "0", "--cache-memory", "-3"): "cache",
            ("--models", str(tmp_path), "--weights", "x"): "exclude each other",
            ("--model-memory", "1"): "goes with --models",
            ("--port", "0", "--models", str(tmp_path)): "no checkpoint",
            ("--port", "0", "--models", str(tmp_path), "--model-memory", "-1"): "--model-memory is -1",
            ("--port", "0", "--models", str(tmp_path / "none")): "no such file",
            ("--port", "0", "--chat-template", str(tmp_path / "none")): "no such file",
        }.items():
            assert exit_code(main, [*arguments]) == 2, arguments
            said = capsys.readouterr().err.strip()
            assert said.count("\n") == 0, said
            assert said.count("127.0.0.1") <= 1, said
            assert word in said


def test_flags_of_loading_hold_for_all_models(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(hub.DEMO, tmp_path / name)
    catalog = _catalog(_parse(["--models", str(tmp_path), "--model-memory", "1e9", "--dtype", "float32"]))
    served = catalog.all[1].load(lambda done, total: None)
    assert [each.card.name for each in catalog.all] == ["a", "b"]
    assert served.llm.model.dtype == torch.float32
    served.engine.close()


def test_an_adapter_is_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["--models", str(tmp_path), "--adapter", "some"]) == 2
    assert "--models and --adapter exclude each other" in capsys.readouterr().err
