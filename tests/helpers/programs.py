"""Small files tokenizer.json, made of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minillm.text.jsonbackend import JsonBackend

SLOW = "(x+x+)+y"  # on many x
LETTERS = {each: i for i, each in enumerate(["<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz ▁"])}


def written(folder: Path, **parts: Any) -> Path:
    """A folder with a tokenizer.json of single letters and these parts."""
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": LETTERS, "merges": [], **parts.pop("model", {})}
    content = {"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model, **parts}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def backend(folder: Path, **parts: Any) -> JsonBackend:
    return JsonBackend(written(folder, **parts) / "tokenizer.json", [])


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def around(*names: str) -> dict[str, Any]:
    """A post-processor: "A" is the text."""
    items = [
        {"Sequence": {"id": "A", "type_id": 0}} if each == "A" else {"SpecialToken": {"id": each, "type_id": 0}}
        for each in names
    ]
    table = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": items, "pair": items, "special_tokens": table}


def added(content: str, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "special")
    return {"id": 30, "content": content, **dict.fromkeys(names, False), "normalized": True, **flags}
