"""The licence that a model card states: the front matter of README.md, YAML between two lines of three dashes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minillm.families.shared.licences import terms

MAX_BYTES = 1_000_000  # of a front matter: long ones list languages and results
MAX_LINES = 1000  # characters about the licence
MAX_LENGTH = 200  # of a name or a link
LINES = re.compile(r"^license(?:_name|_link)?[ ]*:.*(?:\n[ \t-].*)*", re.MULTILINE)  # with what is indented below


def licence(folder: Path) -> dict[str, Any]:
    """`id`, `name` and `link` as the card in a folder gives them, None where it does not; `title` and `asks`, what is
    known of that licence; and `problem`, why nothing is known, or None. Never raises for what a card says."""
    unknown: dict[str, Any] = {"id": None, "name": None, "link": None, "title": None, "asks": []}
    values = front_matter(folder / "README.md")
    if isinstance(values, str):
        return {**unknown, "problem": values}
    found = {
        key: _text(values.get(f"license{ending}")) for key, ending in (("id", ""), ("name", "_name"), ("link", "_link"))
    }
    if found["id"] is None and found["name"] is None:
        return {**unknown, **found, "problem": "the model card states no licence"}
    stated = next((each for name in (found["name"], found["id"]) if name and (each := terms(name))), None)
    if stated is None:
        return {**unknown, **found, "problem": "what this licence asks for is not known here; read it"}
    return {**unknown, **found, "title": stated.title, "asks": list(stated.asks), "problem": None}


def front_matter(path: Path) -> dict[str, Any] | str:
    """What the head of a Markdown file says of its licence, or why nothing. Of the whole, which may be long, broken or
    made to keep a parser busy, only the few lines about the licence are parsed."""
    import yaml

    if not path.is_file():
        return "there is no model card (README.md) beside config.json"
    with open(path, "rb") as file:
        head = file.read(MAX_BYTES).decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
    if not head.startswith("---\n"):
        return "the model card has no front matter"
    text, end, _ = head[3:].partition("\n---")
    if not end:
        return f"the model card's front matter does not end within {MAX_BYTES:,} bytes"
    lines = "\n".join(LINES.findall(text))
    if len(lines) > MAX_LINES:
        return f"the model card has {len(lines):,} characters about its licence, more than {MAX_LINES:,}"
    try:
        # An alias may stand for very much.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(lines)):
            return "the model card's licence is given by an alias"
        values = yaml.safe_load(lines) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return "the model card's front matter is no YAML"
    return values if isinstance(values, dict) else "the model card's front matter is no mapping"


def _text(value: Any) -> str | None:
    """One line of what a card gives; of a list the first."""
    value = value[0] if isinstance(value, list) and value else value
    return value.strip()[:MAX_LENGTH] or None if isinstance(value, str) else None
