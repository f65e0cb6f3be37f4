"""The classes of inputs by name."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz import (
    cards,
    command_lines,
    configs,
    growing,
    safetensors_files,
    spm,
    templates,
    tokenizers_json,
    torch_files,
)
from tests.fuzz.case import Cases
from tests.fuzz.pool import COMMANDS

CLASSES: dict[str, Cases] = {
    "configs": configs.cases,
    "safetensors": safetensors_files.cases,
    "torch": torch_files.cases,
    "tokenizers": tokenizers_json.cases,
    "growing": growing.cases,
    "spm": spm.cases,
    "templates": templates.cases,
    "cards": cards.cases,
    "command-lines": command_lines.cases,
}


def commands(classes: Sequence[str]) -> tuple[str, ...]:
    """What a worker must know of to run them."""
    return command_lines.COMMANDS if "command-lines" in classes else COMMANDS
