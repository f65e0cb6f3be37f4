"""Names and texts of files reach a terminal with what would steer it spelled out; and Ctrl-C is quiet from the first
import on."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minillm import cli, generate
from minillm.guard import screen
from minillm.hub import DEMO
from minillm.plan import __main__ as plan_command
from tests.conftest import ROOT, exit_code

ESCAPES = "\x1b]0;owned\x07 \x9b2J \u202edetrever\u202c \x7f\r"


def on_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code and all that a command shows on a terminal."""
    main, other = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", *arguments], stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        shown = b""
        try:
            while data := os.read(main, 65536):
                shown += data
        except OSError:  # Linux's way of saying that the other end is closed
            pass
    os.close(main)
    return process.returncode, shown.decode()


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """The demo with a vocabulary whose tokens steer a terminal, in a folder whose name does."""
    folder = Path(shutil.copytree(DEMO, tmp_path / f"demo{ESCAPES.replace('/', '')}"))
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {
        (f"{name}{ESCAPES}" if number > 300 else name): number for name, number in vocabulary.items()
    }
    merged = {left + right for left, right in (each if isinstance(each, list) else each.split(" ", 1)
              for each in values["model"]["merges"])}  # fmt: skip
    values["model"]["merges"] = [] if merged else values["model"]["merges"]
    path.write_text(json.dumps(values))
    return folder


def test_generated_text_does_not_steer_a_terminal(owned: Path) -> None:
    code, shown = on_terminal(
        "minillm.generate", "--weights", str(owned), "--prompt-ids", "1,400,401", "--ignore-eos",
        "--max-new-tokens", "24", "--temperature", "2",
    )  # fmt: skip
    assert code == 0, shown
    assert "\\u001b]0;owned\\u0007" in shown
    plain = shown.replace("\r\n", "\n").removesuffix("\x1b[0m")  # colorama leaves it, which numba uses
    assert not screen.STEERING.search(plain), plain


def test_elsewhere_generated_text_is_as_it_is(owned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt-ids", "1,400,401", "--ignore-eos", "--max-new-tokens", "24", "--temperature", "2", "--seed"]
    assert generate.main(["--weights", str(owned), *options, "3"]) == 0
    assert "\x1b]0;owned\x07" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "explain", "lens", "generate"])
def test_json_has_no_raw_controls(command: str, owned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But what they stand for, as JSON writes it."""
    run = {"lens": ["--prompt-ids", "1,400"], "generate": ["--prompt-ids", "1,400", "--max-new-tokens", "3"]}
    assert cli.command(command)(["--weights", str(owned), "--json", *run.get(command, [])]) == 0
    out, err = capsys.readouterr()
    assert not screen.STEERING.search(out + err)
    if command in ("plan", "explain"):
        assert ESCAPES.strip() in json.loads(out)["weights"]


def test_mistakes_are_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--weights", "X", "x\ny"], [f"--dtype{ESCAPES}"], ["--top-k", "9" * 5000], ["--seed", "\u0663"]):
        assert exit_code(generate.main, given) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err[:-1].isprintable()
        assert len(err) < 1.2 * screen.MAX_LINE


def test_two_dashes_are_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--prompt=--", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert generate.main(["--weights=--", "--prompt", "x"]) == 2
    assert "--: no such folder" in capsys.readouterr().err
    assert exit_code(generate.main, ["--dtype=--", "--prompt", "x"]) == 2


def test_a_message_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    def long() -> int:
        raise ValueError("begin" + "x" * 10**6 + "end")

    assert cli.run(long) == 2
    err = capsys.readouterr().err
    assert len(err) < 1.2 * screen.MAX_LINE
    assert all(part in err for part in ("begin", "end", "1,000,008 characters"))


def test_colours_of_our_own_stay() -> None:
    class Terminal:
        shown = ""

        def write(self, text: str) -> int:
            self.shown += text
            return len(text)

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    screen.Shown(stream, screen.OWN["stdout"]).write("\x1b[31mred\x1b[0m \x1b[2Jgone\tand\n")
    assert stream.shown == "\x1b[31mred\x1b[0m \\u001b[2Jgone\tand\n"


def test_the_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert plan_command.main(["--weights", str(DEMO)]) == 0
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("command", [["-m", "minillm.generate"], ["-m", "minillm", "generate"]])
def test_an_interrupt_while_modules_are_imported(command: list[str], tmp_path: Path) -> None:
    slow = "import time\nprint('here', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(slow)
    process = subprocess.Popen(
        [sys.executable, *command, "--prompt", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_who_imports_the_package_keeps_the_interrupt() -> None:
    """Only a command of ours may end without a word."""
    script = "import minillm, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_a_command_that_fails_says_one_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And one that does not says its notes before what it shows."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    (folder / "generation_config.json").write_text('{"foo": 1, "eos_token_id": [99999]}')
    run = ["--weights", str(folder), "--prompt", "Once", "--max-new-tokens", "2"]
    assert generate.main(run) == 0
    assert capsys.readouterr().err.count("minillm: ") == 3
    assert generate.main([*run, "--top-k", "2", "--stop", ""]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("minillm: error: ")
    assert exit_code(generate.main, ["--prompt"]) == 2
    capsys.readouterr()
    screen.note("said at once, outside of a command")
    assert capsys.readouterr().err == "minillm: said at once, outside of a command\n"


def test_what_a_command_changes_is_undone() -> None:
    """The handler of Ctrl-C of a program that calls one, and how its stdout encodes."""
    script = (
        "import signal, sys; from minillm import plan\n"
        "from minillm.plan.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "before = sys.stdout.encoding, sys.stdout.errors, signal.getsignal(signal.SIGINT), sys.stdout\n"
        "main([]); main(['--weights', 'nowhere'])\n"
        "assert before == (sys.stdout.encoding, sys.stdout.errors, signal.getsignal(signal.SIGINT), sys.stdout)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    """It may be a checkpoint."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    for name in ("tokenizers", "jinja2", "numba", "sentencepiece", "json"):
        (folder / f"{name}.py").write_text("raise SystemExit('executed')\n")
    command = [sys.executable, "-m", "minillm.generate", "--weights", ".", "--chat", "--prompt", "x"]
    done = subprocess.run([*command, "--max-new-tokens", "2"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, "executed" in done.stdout + done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("started", [["-m", "other", "-m", "minillm"], ["other.py", "-m", "minillm"]])
def test_another_program_is_no_command_of_ours(started: list[str], tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import minillm, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *started], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout == "True\n", done.stderr
