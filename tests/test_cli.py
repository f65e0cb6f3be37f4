"""The command line as users call it: what goes where, and every mistake is one line and exit code 2."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillm import cli, generate
from minillm.engine.batching import engine, running
from minillm.hub import DEMO
from minillm.loading import load
from tests.conftest import ROOT, exit_code

# As a user's shell has it: some machines set PYTHONUNBUFFERED, which hides what is flushed too late.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": ""}


def start(*arguments: str, module: str = "minillm.generate", **options) -> subprocess.Popen:
    command = [sys.executable, "-m", module, *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=ENVIRONMENT, **{**pipes, **options})


def test_text_goes_to_stdout_and_costs_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--prompt", "Once upon a time", "--max-new-tokens", "8", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == load().generate("Once upon a time", max_new_tokens=8, temperature=0).text
    for figure in ("prompt 5 tokens", "decode 7 tokens", "GB/s", "peak memory"):
        assert figure in err


def test_json_is_exactly_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--prompt-ids", "0,5,6", "--max-new-tokens", "4", "--ignore-eos", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert set(answer) == {"text", "token_ids", "prompt_token_ids", "finish_reason", "timings"}
    assert answer["prompt_token_ids"] == [0, 5, 6]  # raw: no BOS is added
    assert len(answer["token_ids"]) == 4
    assert answer["finish_reason"] == "length"
    assert answer["timings"]["decode_tokens"] == 3


def test_prompt_from_a_file_and_from_stdin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt").write_text("Long ago")
    options = ["--max-new-tokens", "5", "--temperature", "0"]
    assert generate.main(["--prompt", "Long ago", *options]) == 0
    expected = capsys.readouterr().out
    assert generate.main(["--prompt-file", str(tmp_path / "prompt"), *options]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Long ago")))
    assert generate.main(options) == 0
    assert capsys.readouterr().out == expected


def test_without_anything_the_demo_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert generate.main(["--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert len(out) > 5
    assert "the built-in demo continues 'Once upon a time'" in err


def test_stop_strings_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--prompt", "Once upon a time", "--stop", "named", "--max-new-tokens", "40"]) == 0
    out = capsys.readouterr().out
    assert "named" not in out
    assert "there was" in out


def test_chat_keeps_the_history(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = ["Tell me a story about a fox named Pip and a drum.", "Tell me a story about an owl named Ruby and a lamp."]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{turns[1]}\n".encode())))
    assert generate.main(["--chat", "--prompt", turns[0], "--max-new-tokens", "20"]) == 0
    llm, messages, expected = load(), [], ""
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        text = llm.generate(messages=messages, max_new_tokens=20).text
        messages.append({"role": "assistant", "content": text})
        expected += text + "\n"
    assert capsys.readouterr().out == expected


P = ["--prompt", "x"]
# What is wrong: the arguments ({tmp} is a folder made below), and what the one line must name.
BAD: dict[str, tuple[list[str], list[str]]] = {
    "no such folder": (["--weights", "{tmp}/none", *P], ["none: no such folder", "give"]),
    "a file": (["--weights", "{tmp}/latin", *P], ["latin: a file", "folder"]),
    "no config": (["--weights", "{tmp}/empty", *P], ["no config.json"]),
    "model type": (["--weights", "{tmp}/broken", *P], ["'unheard'", "llama, mistral, qwen2, qwen3"]),
    "not in the cache": (["--weights", "no-such-org/no-such-model", *P], ["no-such-org/no-such-model", "cache"]),
    "top_p": (["--top-p", "1.5", *P], ["top_p is 1.5", "0.0 to 1.0"]),
    "temperature": (["--temperature", "-1", *P], ["temperature is -1.0"]),
    "no number": (["--temperature", "hot", *P], ["--temperature", "'hot'"]),
    "max new tokens": (["--max-new-tokens", "0", *P], ["max_new_tokens is 0", "at least 1"]),
    "unknown flag": (["--tempature", "1", *P], ["--tempature"]),
    "abbreviated flag": (["--temp", "1", *P], ["--temp"]),
    "two prompts": ([*P, "--prompt-ids", "1"], ["not allowed with"]),
    "ids": (["--prompt-ids", "1,x"], ["'1,x'", "1,2,3"]),
    "id beyond the vocabulary": (["--prompt-ids", "1,768"], ["768", "vocabulary of 768"]),
    "negative id": (["--prompt-ids=-1"], ["-1", "vocabulary"]),
    "too long": (["--prompt-ids", ",".join(["5"] * 600)], ["600 tokens", "context 512"]),
    "prompt file": (["--prompt-file", "{tmp}/nothing"], ["nothing"]),
    "encoding of a file": (["--prompt-file", "{tmp}/latin"], ["0xe9 at offset 3", "UTF-8"]),
    "device": (["--device", "cuda:99", *P], ["cuda:99", "--device cpu"]),
    "unknown device": (["--device", "abacus", *P], ["abacus"]),
    "system without chat": (["--system", "x", *P], ["--system and --template-variables need --chat"]),
    "variables without chat": (["--template-variables", "{}", *P], ["need --chat"]),
    "variables that are none": (["--chat", "--template-variables", "[1]"], ["'[1]' is not a JSON object"]),
    "chat with json": (["--chat", "--json"], ["--chat"]),
    "chat template refuses": (["--chat", "--system", "x", *P], ["not system"]),
    "empty stop": (["--stop", "", *P], ["stop string is empty"]),
    "empty weights": (["--weights", "", *P], ["path of the weights is empty"]),
    "encoding of an argument": (["--prompt", "a\udcff"], ["UTF-8"]),
    "tiny temperature": (["--temperature", "1e-40", *P], ["temperature is 1e-40"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text('{"model_type": "unheard"}')
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    arguments, named = BAD[case]
    assert exit_code(generate.main, [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minillm: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for text in named:
        assert text in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["broken", "config.json", "empty", "latin"]


def test_the_last_newline_of_a_pipe_is_not_the_prompt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for data in (b"Long ago", b"Long ago\n", b"Long ago\r\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert generate.main(["--max-new-tokens", "1", "--json"]) == 0
    answers = [json.loads(line)["prompt_token_ids"] for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == answers[1] == answers[2]


def test_invalid_utf8_on_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once \xff\xfe")))
    assert generate.main([]) == 2
    message = "minillm: error: stdin: byte 0xff at offset 5 is not UTF-8; convert the text first\n"
    assert capsys.readouterr() == ("", message)


def test_no_stdin_at_all_still_runs_the_demo() -> None:
    """And no stdout, which is no fault."""
    command = f"{sys.executable} -m minillm.generate --max-new-tokens 2 <&- >&-"
    done = subprocess.run(command, shell=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_interrupt_keeps_the_text_and_exits_130() -> None:
    process = start("--prompt", "Once upon a time", "--ignore-eos", "--max-new-tokens", "500", bufsize=0)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    whole = load().generate("Once upon a time", max_new_tokens=500, ignore_eos=True).text.encode()
    assert whole.startswith(first + rest)
    assert b"Traceback" not in err


def test_interrupt_before_there_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert cli.run(interrupted) == 130
    assert capsys.readouterr().err == ""


def test_interrupt_with_json_gives_the_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running.generate

    def interrupted(*arguments, **options):
        for count, event in enumerate(run(*arguments, **options)):
            if count == 3:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(running, "generate", interrupted)
    assert generate.main(["--prompt", "Once upon a time", "--json"]) == 130
    answer = json.loads(capsys.readouterr().out)
    assert answer["finish_reason"] == "interrupted"
    assert answer["text"]


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = start("--prompt", "Once upon a time", "--ignore-eos", "--max-new-tokens", "500", bufsize=0)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == cli.EXIT_BROKEN_PIPE
    assert err == b""


def test_a_reader_that_is_gone_from_the_start() -> None:
    process = start(module="minillm.explain")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == cli.EXIT_BROKEN_PIPE
    assert err == b""


def test_the_console_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--prompt", "Long ago", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert all(command in capsys.readouterr().out for command in ["generate"])
    assert cli.main(["genrate"]) == 2
    assert "no command 'genrate'" in capsys.readouterr().err
    assert cli.main([]) == 2


def test_progress_bar_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    load(DEMO, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == ((DEMO / "model.safetensors").stat().st_size,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    update = cli.progress_bar("loading")
    update(1, 2)
    update(2, 2)
    assert capsys.readouterr().err == ""


def test_a_lack_of_memory_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Store", lambda *_, **__: torch.empty(2**60))
    assert generate.main(["--prompt", "x"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "memory" in err


def test_a_fault_of_ours_is_said_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line too, with another exit code; and where it comes from for those who ask."""

    def fault() -> int:
        raise RuntimeError("shapes do not match")

    assert cli.run(fault) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "fault of minillm itself: RuntimeError shapes do not match (test_cli.py:" in err
    monkeypatch.setenv("MINILLM_TRACEBACK", "1")
    assert cli.run(fault) == 1
    assert "Traceback" in capsys.readouterr().err
