"""The process that programs by strangers run in: it answers as a call would, and ends by its limits or its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minillm.guard.child import Child
from tests.conftest import ROOT

SERVICE = "tests.helpers.service"


@pytest.fixture
def child() -> Child:
    made = Child(SERVICE, setup="before")
    yield made
    made.close()


@pytest.mark.parametrize("value", ["", "狐\udcff\x00", (1, [2.5, None]), {1: "a", "b": (True,)}, 10**40])
def test_questions_keep_their_types(child: Child, value: object) -> None:
    assert child.ask(("represented", value), 10) == repr(value)


@pytest.mark.parametrize("value", ["", "狐\udcff\x00\n", [1, 2.5, None, True], {"a": []}, 10**40, "x" * 3_000_000])
def test_answers_come_back(child: Child, value: object) -> None:
    assert child.ask(("same", value), 10) == value


def test_it_is_prepared_once_and_stays(child: Child) -> None:
    first = child.ask(("process",), 10)
    os.kill(first, signal.SIGINT)  # a terminal sends that to both
    assert child.ask(("process",), 10) == first != os.getpid()
    assert child.ask(("setup",), 10) == "before"


def test_what_it_raises_comes_as_a_bounded_text_and_it_goes_on(child: Child) -> None:
    process = child.ask(("process",), 10)
    with pytest.raises(ValueError, match=r"^no such thing$"):
        child.ask(("refuse", "no such thing"), 10)
    with pytest.raises(ValueError, match="15,000,000 characters") as caught:
        child.ask(("refuse", "x" * 15_000_000), 10)
    assert len(str(caught.value)) < 1100
    assert child.ask(("process",), 10) == process


@pytest.mark.parametrize(
    ("request_", "seconds", "message"),
    [
        (("loop",), 0.3, "more than the 0.3 seconds"),
        (("take", 4_000_000_000), 10, "512 MB"),
        (("abort",), 10, "ended by itself"),
        (("same", "\x00" * 30_000_000), 30, "bytes is more than"),
    ],
)
def test_its_end_is_an_error_and_another_takes_its_place(
    child: Child, request_: tuple, seconds: float, message: str
) -> None:
    process = child.ask(("process",), 10)
    with pytest.raises(ValueError, match=message):
        child.ask(request_, seconds)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert child.ask(("process",), 10) != process
    assert child.ask(("setup",), 10) == "before"


def test_one_that_ended_while_nobody_asked_is_no_error(child: Child) -> None:
    process = child.ask(("process",), 10)
    os.kill(process, signal.SIGTERM)
    while child._process is not None and child._process.poll() is None:
        time.sleep(0.01)
    assert child.ask(("process",), 10) != process


def test_memory_beyond_the_usual_can_be_allowed(child: Child) -> None:
    with pytest.raises(ValueError, match="512 MB"):
        child.ask(("take", 560_000_000), 10)
    assert child.ask(("take", 560_000_000), 10, 100_000_000) == 560_000_000


def test_memory_has_an_end_whoever_allows_it(child: Child) -> None:
    with pytest.raises(ValueError, match="640 MB"):
        child.ask(("take", 700_000_000), 10, 10**10)


def test_a_setup_that_fails_is_said_at_each_question() -> None:
    child = Child(SERVICE, setup="broken")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^cannot be prepared$"):
            child.ask(("process",), 10)


def test_threads_take_turns(child: Child) -> None:
    answers: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append([child.ask(("same", n), 30) for _ in range(50)]))
        for n in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(answers) == [[n] * 50 for n in range(8)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_gets_one_of_its_own(child: Child) -> None:
    process = child.ask(("process",), 10)
    fork = os.fork()
    if fork == 0:
        try:
            other = child.ask(("process",), 10)
            child.close()
            os._exit(0 if other != process else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert child.ask(("process",), 10) == process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_leaves_nothing_open_and_warns_of_nothing() -> None:
    """Also where it forks while another thread has asked, and two of its own threads ask at once."""
    script = f"""
import gc, os, threading, time
from minillm.guard.child import Child
child = Child({SERVICE!r})
first = child.ask(("process",), 10)
threading.Thread(target=child.ask, args=(("wait", 1.0), 10)).start()
time.sleep(0.2)
before = len(os.listdir("/proc/self/fd"))
if (fork := os.fork()) == 0:
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(child.ask(("process",), 10))) for _ in range(2)]
    [each.start() for each in threads], [each.join() for each in threads]
    assert seen[0] == seen[1] != first
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
assert child.ask(("process",), 10) == first
"""
    command = [sys.executable, "-X", "dev", "-W", "always", "-c", script]
    made = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, timeout=60)
    said = [line for line in made.stderr.splitlines() if "multi-threaded" not in line and "os.fork()" not in line]
    assert (made.returncode, said) == (0, [])


@pytest.mark.parametrize("executable", ["/bin/true", "/nowhere/python", "", None])
def test_no_process_is_no_fault_of_the_request(
    child: Child, executable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in programs that embed Python, or freeze it."""
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ChildProcessError, match="no process of its own"):
        child.ask(("process",), 10)
    monkeypatch.undo()
    assert child.ask(("process",), 10) != os.getpid()


def test_it_starts_before_it_is_asked(child: Child) -> None:
    child.start()
    process = child._process
    child.start()
    assert process is not None
    assert child.ask(("process",), 10) == process.pid


def test_preparing_counts_as_the_first_question() -> None:
    child = Child(SERVICE, setup=0.4)
    with pytest.raises(ValueError, match="more than the"):
        child.ask(("process",), 0.3)
    assert child.ask(("process",), 10)
    child.close()


SCRIPT = f"""
import sys
from minillm.guard.child import Child
child = Child({SERVICE!r})
print(child.ask(("process",), 10), flush=True)
child.ask(("loop",), float(sys.argv[1]))
"""


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    """In a loop that never looks whether there still is one: the limit of processor time is left."""
    command = [sys.executable, "-c", SCRIPT, "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 120
    while state_of(process) not in ("", "Z"):
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.1)


def state_of(process: int) -> str:
    """The letter that the kernel has for it; none where it has ended, between two looks too."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_ctrl_c_ends_the_question_and_the_child() -> None:
    command = [sys.executable, "-c", SCRIPT, "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        parent.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in parent.communicate(timeout=60)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_it_imports_no_torch(child: Child) -> None:
    assert "torch" not in child.ask(("modules",), 10)
    assert not {"jinja2", "subprocess", "tempfile"} & set(child.ask(("modules",), 10))
