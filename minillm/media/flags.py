"""Pictures, videos and sounds on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.media import sources

COMMANDS = {
    "/image": "image",
    "/video": "video",
    "/audio": "audio",
}  # lines of a chat that show a file, for the next turn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--image`, `--audio`, `--video` and what bounds them."""
    shown = "a picture (repeatable), in front of the prompt or where it has marks for it"
    parser.add_argument("--image", metavar="FILE", action="append", help=shown)
    parser.add_argument("--audio", metavar="FILE", action="append", help="a sound (repeatable), as --image")
    parser.add_argument("--video", metavar="FILE", action="append", help="a video, or a folder of frames, as --image")
    parser.add_argument("--fps", metavar="N", type=float, help="frames a second of a folder of frames (default 2)")
    parser.add_argument("--max-frames", metavar="N", type=int, help="how many frames of a video are looked at, at most")
    most = "the size that a picture is seen in at most (default 1310720), or a frame of a video"
    parser.add_argument("--max-pixels", metavar="N", type=int, help=most)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What of `LLM.generate` they are."""
    found = {"images": arguments.image, "audio": arguments.audio, "max_pixels": arguments.max_pixels}
    return {name: value for name, value in {**found, "videos": _videos(arguments)}.items() if value is not None}


def _videos(arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Parts of a message. Raises ValueError for flags that go with videos where there are none."""
    of_each = {"fps": arguments.fps, "max_frames": arguments.max_frames}
    if idle := [name for name, value in of_each.items() if value is not None and not arguments.video]:
        raise ValueError(f"--{idle[0].replace('_', '-')} goes with --video; give one, or leave it out")
    return [{"video": path, **of_each} for path in arguments.video] if arguments.video else None


class Shown:
    """What the next turn of a chat shows; first what the command line has."""

    def __init__(self, arguments: argparse.Namespace):
        self.parts = sources.beside(arguments.image, arguments.audio, _videos(arguments))
        self.most = sources.most_pixels(arguments.max_pixels)

    def takes(self, line: str) -> bool:
        """Whether a line is a command that shows a file. Raises ValueError for one that cannot be read."""
        command, _, path = line.strip().partition(" ")
        if command not in COMMANDS:
            return False
        kind: Any = COMMANDS[command]
        sources.source(kind, path.strip(), path.strip() or command)
        self.parts.append({"type": kind, kind: path.strip()})
        return True

    def limit(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """--max-pixels, where anything is shown so far."""
        there = any(isinstance(each.get("content"), list) for each in messages)
        return {"max_pixels": self.most} if there and self.most is not None else {}

    def turn(self, text: str) -> dict[str, Any]:
        """The user's message."""
        parts, self.parts = self.parts, []
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}
