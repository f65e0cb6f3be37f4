"""Flags of generate that say where a prompt comes from, how an answer begins and where it ends."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from minillm import generate
from minillm.loading import load
from tests.conftest import exit_code


def test_a_dash_is_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ([], ["--prompt-file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Long ago\n")))
        assert generate.main([*options, "--max-new-tokens", "3", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["token_ids"] == second["token_ids"]
    assert first["prompt_token_ids"] == second["prompt_token_ids"]


def test_stop_token_ids(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt", "Once upon a time", "--max-new-tokens", "8", "--json"]
    assert generate.main(options) == 0
    ids = json.loads(capsys.readouterr().out)["token_ids"]
    assert generate.main([*options, "--stop-token-ids", f"{ids[4]},2"]) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == ids[: ids.index(ids[4]) + 1]


def test_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """Each as a text of its own, or as an object, with the seeds one after the other."""
    given = ["--prompt", "Once upon a time", "--temperature", "1", "--seed", "3", "--max-new-tokens", "8"]
    assert generate.main([*given, "--samples", "3", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert generate.main([*given, "--seed", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == found[2]["token_ids"]
    assert generate.main([*given, "--samples", "3"]) == 0
    assert capsys.readouterr().out == "".join(f"--- {i}\n{each['text']}\n" for i, each in enumerate(found, 1))
    assert found[0]["timings"]["prompt_tokens"] == len(found[0]["prompt_token_ids"])
    for wrong, word in ((["--samples", "0"], "at least 1"), (["--samples", "2", "--chat"], "do not apply")):
        assert exit_code(generate.main, [*given, *wrong]) == 2
        assert word in capsys.readouterr().err


def test_a_chat_with_a_template_of_its_own_and_begun_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer begins as asked, is printed and remembered with its beginning, and goes on from there."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ '\n' if not loop.last }}{% endfor %}"
    (tmp_path / "t.jinja").write_text(template)
    turns, begun = ["A fox.", "An owl."], "Once upon"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{turns[1]}\n".encode())))
    options = ["--chat-template", str(tmp_path / "t.jinja"), "--prefill", begun, "--max-new-tokens", "6"]
    assert generate.main(["--chat", "--prompt", turns[0], *options]) == 0
    llm = load()
    first = begun + llm.generate(f"{turns[0]}\n{begun}", max_new_tokens=6).text
    second = begun + llm.generate(f"{turns[0]}\n{first}\n{turns[1]}\n{begun}", max_new_tokens=6).text
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    for flags in (["--prefill", "x"], ["--chat-template", "x"]):
        assert exit_code(generate.main, [*flags, "--prompt", "x"]) == 2
        assert "so do --prefill and --chat-template" in capsys.readouterr().err
    assert generate.main(["--chat", "--chat-template", "none.jinja", "--prompt", "x"]) == 2
    assert "--chat-template none.jinja: no such file" in capsys.readouterr().err
