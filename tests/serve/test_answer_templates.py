"""The format of each published template, and that what it writes of a call is read as that call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minillm.serve.answers import Reader, style_of
from minillm.text.chat import ChatTemplate, find
from tests.conftest import shared
from tests.helpers.answers import TOOLS, calls_of, read, shown

STYLES = {
    "HuggingFaceTB__SmolLM3-3B": "tagged", "Qwen__Qwen2.5-0.5B-Instruct": "tagged", "Qwen__Qwen3-1.7B": "tagged",
    "Qwen__Qwen3-VL": "tagged", "Qwen__Qwen3.5-0.8B": "functions", "openbmb__MiniCPM-V-4_6": "functions",
    "bnb__Llama-3.1-8B-Instruct": "bare", "meta-llama__Llama-3.2-3B-Instruct": "bare",
    "meta-llama__Llama-3.2-11B-Vision-Instruct": "bare", "deepseek-ai__DeepSeek-R1": "fenced",
    "google__gemma-4-E2B-it": "quoted", "openai__gpt-oss-20b": "channels",
    "ibm-granite__granite-3.1-1b-a400m-instruct": "marked-array", "google__gemma-3-4b-it": "none",
    "microsoft__phi-4": "none", "TinyLlama__TinyLlama-1.1B-Chat-v1.0": "none",
    "mistralai__Mistral-7B-Instruct-v0.3": "none",
    "LiquidAI__LFM2-1.2B": "none", "Qwen__Qwen2-Audio-7B-Instruct": "none", "google__gemma-2-2b-it": "none",
}  # fmt: skip
WRITING = [name for name, style in STYLES.items() if style not in ("none", "marked-array")]
WRITING.remove("HuggingFaceTB__SmolLM3-3B")  # its template renders no calls of a history
ENDS = ("<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<turn|>")
ARGUMENTS = {"text": 'a "b" é', "count": 3, "flag": True, "list": [1, "x"]}


def source(name: str) -> tuple[Path, str]:
    folder = shared(f"real-configs/{name}")
    path = folder / "tokenizer_config.json"
    found = find(folder, json.loads(path.read_text()) if path.exists() else {})
    assert found
    return folder, found


@pytest.mark.parametrize("name", STYLES)
def test_the_format_is_told_from_the_template(name: str) -> None:
    assert style_of(source(name)[1]).name == STYLES[name]


def rendered(name: str, messages: list[dict[str, Any]], **how: Any) -> str:
    tools = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": TOOLS["weather"]}}]
    special = {"bos_token": "", "eos_token": ""}
    return ChatTemplate(source(name)[1], special).render(messages, tools=tools, **how)


@pytest.mark.parametrize("name", WRITING)
def test_what_a_template_writes_is_read(name: str) -> None:
    asked = [{"role": "user", "content": "Weather?"}]
    given: Any = json.dumps(ARGUMENTS, ensure_ascii=False) if STYLES[name] == "fenced" else ARGUMENTS
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": given}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    prompt = rendered(name, asked)
    text = rendered(name, [*asked, answer], add_generation_prompt=False)
    begins = max(text.rfind("<|start|>"), text.rfind("weather", 0, len(text)) - 80)
    same = next((at for at, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(prompt))
    shared_part = prompt[:same]
    raw = text[len(shared_part) :] if len(shared_part) > begins else text[begins:]
    found = read(Reader(style_of(source(name)[1]), shared_part, TOOLS, specials=ENDS), [raw])
    assert calls_of(found) == [("weather", ARGUMENTS)]
    assert not shown(found, "content").strip()


def test_a_prompt_that_opens_reasoning_is_seen() -> None:
    name, asked = "Qwen__Qwen3.5-0.8B", [{"role": "user", "content": "Do not <think>."}]
    for thinking, kind in ((True, "reasoning"), (False, "content")):
        tail = rendered(name, asked, variables={"enable_thinking": thinking})
        assert shown(read(Reader(style_of(source(name)[1]), tail, TOOLS), ["Well."], "length"), kind) == "Well."
