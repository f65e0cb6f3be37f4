"""--weights org/name: from the local cache, by download of only what is needed, or a clear error.

The download runs against a hub on this machine that serves one repository and notes what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import minillm
from minillm.explain import __main__ as explain
from minillm.hub import DEMO
from minillm.plan import __main__ as plan
from tests.conftest import ROOT
from tests.families.test_makers import made  # noqa: F401

REPO, MAKER = "someone/stories", "maker/own"
UNNEEDED = {"README.md": b"# hello", "pytorch_model.bin": b"\0" * 10, "extra/adapter.safetensors": b"\0" * 10}
COMMIT = "a" * 40
REVISIONS = ("main", "v1.0")
# What the hub answers instead: status and X-Error-Code, as huggingface.co does.
REFUSED = {"some/gated": (401, "GatedRepo"), "some/asked": (403, "GatedRepo"), "some/private": (401, "RepoNotFound")}


FILES = {**{path.name: path.read_bytes() for path in DEMO.iterdir()}, **UNNEEDED}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        repo, _, rest = self.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        files = {f"/{REPO}": FILES, f"/{MAKER}": self.server.own}.get(repo)
        data = files.get(name) if files is not None and revision in REVISIONS else None
        if data is not None and body:
            self.server.asked.append(name)
        if data is None:
            entry = "EntryNotFound" if revision in REVISIONS else "RevisionNotFound"
            status, code = REFUSED.get(repo[1:], (404, "RepoNotFound" if files is None else entry))
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.own = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def run(cache: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment.update(
        PYTHONPATH=str(ROOT), HF_HOME=str(cache), HF_ENDPOINT=endpoint, HF_HUB_DISABLE_XET="1", TRITON_INTERPRET="0",
        no_proxy="*", HF_HUB_DISABLE_TELEMETRY="1",
    )  # fmt: skip
    command = [sys.executable, "-m", *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def generate(cache: Path, endpoint: str, weights: str = REPO) -> subprocess.CompletedProcess[str]:
    options = ("--weights", weights, "--prompt", "Once", "--max-new-tokens", "3")
    return run(cache, endpoint, "minillm.generate", *options)


def test_download_then_cache(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    first = generate(tmp_path, endpoint)
    assert first.returncode == 0, first.stderr
    needed = {path.name for path in DEMO.iterdir()}
    assert set(hub.asked) == needed  # each once, and nothing else
    assert len(hub.asked) == len(needed)
    hub.shutdown()  # from now on only the cache can answer
    again = generate(tmp_path, endpoint)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["token_ids"] == json.loads(first.stdout)["token_ids"]


def test_an_incomplete_cache_is_completed(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert generate(tmp_path, endpoint).returncode == 0
    (weights,) = tmp_path.rglob("snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    hub.asked.clear()
    assert generate(tmp_path, endpoint).returncode == 0
    assert hub.asked == ["model.safetensors"]


@pytest.mark.parametrize("made", ["mistral", "llama 2"], indirect=True)
def test_a_maker_s_own_files(hub: ThreadingHTTPServer, made: tuple[Path, Any], tmp_path: Path) -> None:  # noqa: F811
    """Where there is no config.json: params.json, and weights in one file or in as many parts as there are."""
    hub.own = {path.name: path.read_bytes() for path in made[0].iterdir()}
    endpoint, options = f"http://127.0.0.1:{hub.server_port}", ("--prompt-ids", "1,5", "--max-new-tokens", "3")
    told = run(tmp_path, endpoint, "minillm.explain", "--weights", MAKER)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "in its maker's own layout" in told.stderr
    first = run(tmp_path, endpoint, "minillm.generate", "--weights", MAKER, *options)
    assert first.returncode == 0, first.stderr
    assert set(hub.asked) == set(hub.own)
    hub.shutdown()
    again = run(tmp_path, endpoint, "minillm.generate", "--weights", MAKER, *options)
    assert again.returncode == 0, again.stderr
    expected = minillm.load(made[0]).generate(prompt_ids=[1, 5], max_new_tokens=3, temperature=0).token_ids
    assert json.loads(again.stdout)["token_ids"] == json.loads(first.stdout)["token_ids"] == expected


@pytest.mark.parametrize("weights", [REPO, "someone/else"])
def test_absent_and_offline(weights: str, tmp_path: Path) -> None:
    done = generate(tmp_path, "http://127.0.0.1:9", weights)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"{weights}: not a folder, not in the local Hugging Face cache" in done.stderr


def test_unknown_to_the_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    done = generate(tmp_path, f"http://127.0.0.1:{hub.server_port}", "someone/else")
    assert done.returncode == 2
    assert "someone/else" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_explain_fetches_no_weights(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    done = run(tmp_path, f"http://127.0.0.1:{hub.server_port}", "minillm.explain", "--weights", REPO)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_type"] == "llama"
    assert hub.asked == ["config.json"]
    hub.shutdown()  # without a connection the config in the cache is enough
    again = run(tmp_path, "http://127.0.0.1:9", "minillm.explain", "--weights", REPO)
    assert again.stdout == done.stdout


GATED = ("is gated", "https://huggingface.co/some/gated", "hf auth login", "HF_TOKEN")
PRIVATE = ("no such repository", "private", "HF_TOKEN")


@pytest.mark.parametrize(
    ("repo", "words", "others"),
    [
        ("some/gated", (*GATED, "accept its terms"), ("check the name", "granted")),
        ("some/asked", ("is gated", "https://huggingface.co/some/asked", "granted"), ("accept its terms",)),
        ("some/private", PRIVATE, ("gated",)),
        ("someone/else", PRIVATE, ("gated",)),
    ],
)
def test_what_a_hub_refuses(
    hub: ThreadingHTTPServer, repo: str, words: tuple[str, ...], others: tuple[str, ...], tmp_path: Path
) -> None:
    done = generate(tmp_path, f"http://127.0.0.1:{hub.server_port}", repo)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not any(word in done.stderr for word in others), done.stderr


def test_a_cache_that_lacks_a_file_and_no_connection(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert generate(tmp_path, f"http://127.0.0.1:{hub.server_port}").returncode == 0
    (weights,) = tmp_path.rglob("snapshots/*/model.safetensors")
    weights.unlink()
    done = generate(tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "lacks model.safetensors" in done.stderr
    assert "not in the local" not in done.stderr


def test_a_revision(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    """A cache that only it was put in serves it without a connection, by both spellings, and nothing else."""
    endpoint, gone = f"http://127.0.0.1:{hub.server_port}", "http://127.0.0.1:9"
    options = ("--prompt", "Once", "--max-new-tokens", "3")
    first = run(tmp_path, endpoint, "minillm.generate", "--weights", f"{REPO}@v1.0", *options)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "hub/models--someone--stories/refs/v1.0").read_text() == COMMIT
    again = run(tmp_path, gone, "minillm.generate", "--weights", REPO, "--revision", "v1.0", *options)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["token_ids"] == json.loads(first.stdout)["token_ids"]
    assert run(tmp_path, gone, "minillm.generate", "--weights", REPO, *options).returncode == 2
    absent = run(tmp_path, endpoint, "minillm.explain", "--weights", REPO, "--revision", "v9")
    assert absent.returncode == 2
    assert "has no revision 'v9'" in absent.stderr
    for command in ("explain", "plan"):
        assert run(tmp_path, gone, f"minillm.{command}", "--weights", REPO, "--revision", "v1.0").returncode == 0


@pytest.mark.parametrize(
    ("weights", "revision", "words"),
    [
        (str(DEMO), "v1.0", "has no revisions"),
        (None, "v1.0", "has no revisions"),
        ("a/b@v1", "v2", "name two revisions"),
        ("a/b", "../../v1", "cannot be one"),
        ("a/b@", None, "cannot be one"),
    ],
)
def test_revisions_that_cannot_be(weights: str | None, revision: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        minillm.load(weights, revision=revision)


def test_a_revision_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for main, more in ((explain.main, []), (explain.main, ["--table", str(DEMO)]), (plan.main, [])):
        assert main(["--revision", "v1.0", *more]) == 2
        assert "--revision" in capsys.readouterr().err
