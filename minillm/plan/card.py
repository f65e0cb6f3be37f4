"""The licence that a model card states: the front matter of README.md, YAML between two lines of three dashes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minillm.families.shared.licences import terms
from minillm.guard.files import is_there, read_head
from minillm.guard.parsing import reading

MAX_BYTES = 1_000_000  # of a front matter: long ones list languages and results
MAX_LINES = 1000  # characters about the licence
MAX_LENGTH = 200  # of a name or a link
CARD = "README.md"
TEXT = "tag:yaml.org,2002:str"
LINES = re.compile(r"^license(?:_name|_link)?[ ]*:.*(?:\n[ \t-].*)*", re.MULTILINE)  # with what is indented below


def licence(folder: Path) -> dict[str, Any]:
    """`id`, `name` and `link` as the card in a folder gives them, None where it does not; `title` and `asks`, what is
    known of that licence; and `problem`, why nothing is known, or None. Never raises for what a card says; ValueError
    where README.md is a folder or a pipe."""
    unknown: dict[str, Any] = {"id": None, "name": None, "link": None, "title": None, "asks": []}
    values = front_matter(folder / CARD)
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

    if not is_there(path):
        return "there is no model card (README.md)"
    head = read_head(path, MAX_BYTES).decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
    if not head.startswith("---\n"):
        return "the model card has no front matter"
    text, end, _ = head[3:].partition("\n---")
    if not end:
        return f"the model card's front matter does not end within {MAX_BYTES:,} bytes"
    lines = "\n".join(LINES.findall(text))
    if len(lines) > MAX_LINES:
        return f"the model card has {len(lines):,} characters about its licence, more than {MAX_LINES:,}"
    try:
        with reading(path, "no YAML"):
            events = list(yaml.parse(lines))
            if any(isinstance(event, yaml.AliasEvent) for event in events):  # which may stand for very much
                return "the model card's licence is given by an alias"
            if any(getattr(event, "tag", None) for event in events):  # which would have more of a parser run
                return "the model card's front matter is no YAML as it should be: its licence has a tag"
            root = yaml.compose(lines, yaml.SafeLoader) or yaml.MappingNode("", [])
    except ValueError:
        return "the model card's front matter is no YAML"
    if not isinstance(root, yaml.MappingNode):
        return "the model card's front matter is no mapping"
    keys = [str(key.value) for key, _ in root.value]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        return f"the model card states its {twice} twice"
    return dict(zip(keys, (value for _, value in root.value), strict=True))


def _text(node: Any) -> str | None:
    """One line of what a card gives; of a list the first. What YAML takes for a number or a date is no licence, and
    never made one: parsers of those fail in ways of their own."""
    if getattr(node, "id", None) == "sequence" and node.value:
        node = node.value[0]
    return node.value.strip()[:MAX_LENGTH] or None if getattr(node, "tag", None) == TEXT else None
