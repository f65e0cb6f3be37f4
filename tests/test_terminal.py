"""What only a terminal shows: an interactive chat and the progress of a load, through a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from tests.test_cli import ENVIRONMENT

END_OF_INPUT = b"\x04"  # Ctrl-D


def session(*arguments: str, keys: tuple[bytes, ...] = ()) -> str:
    """Run Python in a terminal of 100 columns, type each of `keys` at its prompt, and return all that it showed."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, *arguments], stdin=other, stdout=other, stderr=other, env=ENVIRONMENT)
    os.close(other)
    shown = b""
    for prompts, key in enumerate(keys, start=1):
        while shown.count(b"> ") < prompts:
            shown += os.read(main, 4096)
        os.write(main, key)
    try:
        while data := os.read(main, 4096):
            shown += data
    except OSError:  # Linux's way of saying that the other end is closed
        pass
    assert process.wait(timeout=60) == 0, shown
    return shown.decode()


def test_chat_survives_a_bad_turn() -> None:
    turns = (b"A story about a fox.\n", b"word " * 600 + b"\n", b"\n", b"A story about an owl.\n", END_OF_INPUT)
    shown = session("-m", "minillm.generate", "--chat", "--max-new-tokens", "12", keys=turns)
    assert "tokens and the context 512" in shown
    assert shown.count("cut after 12 tokens") == 2
    assert "Traceback" not in shown


def test_a_load_of_over_a_second_shows_a_bar() -> None:
    script = (
        "import time; from minillm.cli import progress_bar; update = progress_bar('loading')\n"
        "for part in range(1, 6): update(part * 10**8, 5 * 10**8); time.sleep(0.4)"
    )
    assert "400M/500M" in session("-c", script)


def test_a_short_load_shows_none() -> None:
    script = "from minillm.cli import progress_bar; update = progress_bar('loading'); update(1, 2); update(2, 2)"
    assert "loading" not in session("-c", script)
