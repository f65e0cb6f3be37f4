"""Objects inside a body: messages, parts of contents, items, calls and tools. Each has fields that are used, fields
that are accepted without effect, and fields that are refused for a reason; any other is refused as unknown.

What has no effect is collected by its path without numbers, such as `messages.content.cache_control`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from minillm.guard.screen import shown
from minillm.serve.errors import Refusal

TEXT_ONLY = "this is for text only"


@dataclass(frozen=True)
class Object:
    """The fields of one kind of object."""

    used: tuple[str, ...]
    idle: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MESSAGE = Object(
    _words("role content tool_calls tool_call_id reasoning_content reasoning thinking name"),
    _words("annotations id provider_specific_fields reasoning_details refusal thinking_blocks"),
    {"audio": TEXT_ONLY, "function_call": "use tool_calls", "images": "use parts of type image_url"},
)
OLLAMA_MESSAGE = Object(_words("role content images thinking tool_calls tool_name tool_call_id"))
CALL = Object(_words("id type function"), _words("extra_content index provider_specific_fields"))
CALL_FUNCTION = Object(_words("name arguments"), _words("index parsed_arguments provider_specific_fields"))
TOOL = Object(_words("type function"), _words("cache_control"))
TOOL_FUNCTION = Object(_words("name description parameters strict"), _words("cache_control"))
CHOICE = Object(_words("type function"))
CHOICE_FUNCTION = Object(_words("name"))
FORMAT = Object(_words("type json_schema"))
JSON_SCHEMA = Object(_words("schema"), _words("description name strict"))
TEXT = Object(_words("type text"), _words("annotations cache_control citations logprobs prompt_cache_breakpoint"))
IMAGE_PART = Object(_words("type image_url"), _words("prompt_cache_breakpoint"))
IMAGE_ADDRESS = Object(_words("url"), _words("detail"))
AUDIO_PART = Object(_words("type input_audio"), _words("prompt_cache_breakpoint"))
AUDIO_DATA = Object(_words("data format"))
BLOCK_IMAGE = Object(_words("type source"), _words("cache_control"))
NOTHING_FETCHED = "no image is fetched; send it in base64"
BLOCK_SOURCE = Object(_words("type data"), _words("media_type"), {"url": NOTHING_FETCHED, "file_id": NOTHING_FETCHED})
BLOCKS_MESSAGE = Object(_words("role content"))
THINKING = Object(_words("type thinking"), _words("signature"))
REDACTED = Object(_words("type"), _words("data"))
TOOL_USE = Object(_words("type id name input"), _words("cache_control caller toolset_name"))
TOOL_RESULT = Object(_words("type tool_use_id content is_error"), _words("cache_control toolset_name"))
BLOCKS_TOOL = Object(
    _words("type name description input_schema strict"),
    _words("allowed_callers cache_control defer_loading eager_input_streaming input_examples"),
)
SCHEMA_FORMAT = Object(_words("type schema"), _words("description name strict"))
ITEM_IMAGE = Object(
    _words("type image_url"),
    _words("detail prompt_cache_breakpoint"),
    {"file_id": NOTHING_FETCHED, "file_url": NOTHING_FETCHED},
)
ITEM_MESSAGE = Object(_words("type role content"), _words("id phase status"))
_ITEM_CALL = _words("async caller id namespace status")
FUNCTION_CALL = Object(_words("type call_id name arguments"), _ITEM_CALL)
CUSTOM_CALL = Object(_words("type call_id name input"), _ITEM_CALL)
CALL_OUTPUT = Object(_words("type call_id output"), _words("caller id name namespace status"))
REASONING = Object(_words("type content summary"), _words("encrypted_content id status"))
_ITEM_TOOL = _words("allowed_callers async defer_loading")
FUNCTION_TOOL = Object(_words("type name description parameters strict"), (*_ITEM_TOOL, "output_schema"))
CUSTOM_TOOL = Object(_words("type name description"), (*_ITEM_TOOL, "format"))
ITEM_CHOICE = Object(_words("type name"))

# By the words that the documentation has for them.
OBJECTS: dict[str, Object] = {
    "part of a content, type `text` and the like": TEXT,
    "chat: part `image_url`": IMAGE_PART,
    "chat: `image_url` of a part": IMAGE_ADDRESS,
    "chat: part `input_audio`": AUDIO_PART,
    "chat: `input_audio` of a part": AUDIO_DATA,
    "chat: message": MESSAGE,
    "chat, Ollama: call of a message": CALL,
    "chat, Ollama: `function` of a call": CALL_FUNCTION,
    "chat, Ollama: tool": TOOL,
    "chat, Ollama: `function` of a tool": TOOL_FUNCTION,
    "chat: `tool_choice`": CHOICE,
    "chat: `function` of a `tool_choice`": CHOICE_FUNCTION,
    "chat: `response_format`": FORMAT,
    "chat: `json_schema` of a `response_format`": JSON_SCHEMA,
    "Ollama: message": OLLAMA_MESSAGE,
    "messages: message": BLOCKS_MESSAGE,
    "messages: block `image`": BLOCK_IMAGE,
    "messages: `source` of a block `image`": BLOCK_SOURCE,
    "messages: block `thinking`": THINKING,
    "messages: block `redacted_thinking`": REDACTED,
    "messages: block `tool_use`": TOOL_USE,
    "messages: block `tool_result`": TOOL_RESULT,
    "messages: tool": BLOCKS_TOOL,
    "messages: `format` of `output_config`": SCHEMA_FORMAT,
    "responses: item `message`": ITEM_MESSAGE,
    "responses: part `input_image`": ITEM_IMAGE,
    "responses: item `function_call`": FUNCTION_CALL,
    "responses: item `custom_tool_call`": CUSTOM_CALL,
    "responses: items `function_call_output`, `custom_tool_call_output`": CALL_OUTPUT,
    "responses: item `reasoning`": REASONING,
    "responses: tool `function`": FUNCTION_TOOL,
    "responses: tool `custom`": CUSTOM_TOOL,
    "responses: `tool_choice`": ITEM_CHOICE,
}
# Parts of a content that are none, by their types, and those that are text.
CHAT_PARTS, ITEM_PARTS = ("image_url", "input_audio"), ("input_image",)
TEXTS = (None, "text", "input_text", "output_text", "reasoning_text", "summary_text")


def taken(at: str, given: Any, kind: Object, idle: list[str]) -> dict[str, Any]:
    """The fields of an object that are used. `at` is where it stands: "messages[3].content[0]". Adds to `idle` what is
    without effect. Raises Refusal that names the place and the field."""
    if not isinstance(given, dict):
        raise Refusal(400, f"{at} is {shown(given)}, expected an object", "invalid_value", _param(at))
    found = {name: each for name, each in given.items() if each is not None}
    for name in [name for name in kind.refused if found.get(name)]:
        said = f"{at}.{name} is not supported: {kind.refused[name]}"
        raise Refusal(400, said, "unsupported_parameter", _param(at))
    if unknown := sorted(set(found) - {*kind.used, *kind.idle, *kind.refused}):
        said = f"{at} has the unknown field {shown(unknown[0])}; leave it out"
        raise Refusal(400, said, "unknown_parameter", _param(at))
    for name in kind.idle:
        if name in found:
            note(at, name, idle)
    return {name: each for name, each in found.items() if name in kind.used}


def note(at: str, name: str, idle: list[str]) -> None:
    """Say once that something is without effect."""
    path = re.sub(r"\[\d+\]", "", at) + "." + name[:60]
    if path not in idle:
        idle.append(path)


def _param(at: str) -> str:
    return re.split(r"[.\[]", at)[0]


def plain_text(at: str, content: Any, idle: list[str]) -> str:
    """A content as one text. Raises Refusal for parts that are none."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Refusal(400, f"{at} is {shown(content)}, expected a text or parts", "invalid_value", _param(at))
    return "\n".join(text(f"{at}[{index}]", each, idle) for index, each in enumerate(content))


def content(at: str, given: Any, idle: list[str], seen: Collection[str] = CHAT_PARTS) -> str | list[dict[str, Any]]:
    """A content as one text, or as its parts where some are pictures or sounds, of the types `seen`. Raises Refusal."""
    kinds = [part.get("type") for part in given if isinstance(part, dict)] if isinstance(given, list) else []
    if not {*seen} & {kind for kind in kinds if isinstance(kind, str)}:
        return plain_text(at, given, idle)
    return [_part(f"{at}[{index}]", each, idle, seen) for index, each in enumerate(given)]


def _part(at: str, part: Any, idle: list[str], seen: Collection[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    kind = kind if isinstance(kind, str) and kind in seen else None
    if kind == "image_url":
        found = taken(at, part, IMAGE_PART, idle).get("image_url")
        address = taken(f"{at}.image_url", {"url": found} if isinstance(found, str) else found, IMAGE_ADDRESS, idle)
        return {"type": "image", "image": _said(f"{at}.image_url.url", address.get("url"))}
    if kind == "input_image":
        return {"type": "image", "image": _said(f"{at}.image_url", taken(at, part, ITEM_IMAGE, idle).get("image_url"))}
    if kind == "input_audio":
        found = taken(f"{at}.input_audio", taken(at, part, AUDIO_PART, idle).get("input_audio"), AUDIO_DATA, idle)
        return {"type": "audio", "audio": f"data:audio;base64,{_said(f'{at}.input_audio.data', found.get('data'))}"}
    return {"type": "text", "text": text(at, part, idle)}


def beside(at: str, images: Any, said: Any) -> Any:
    """A content of pictures in base64, as Ollama has them beside a text. Raises Refusal."""
    if not images:
        return said
    if not isinstance(images, list):
        raise Refusal(
            400, f"{at} is {shown(images)}, expected a list of pictures in base64", "invalid_value", _param(at)
        )
    texts = [_said(f"{at}[{index}]", each) for index, each in enumerate(images)]
    parts = [{"type": "image_url", "image_url": f"data:image;base64,{each}"} for each in texts]
    return [*parts, {"type": "text", "text": said}] if said else parts


def picture(at: str, block: Any, idle: list[str]) -> dict[str, Any]:
    """The picture of a block `image`. Raises Refusal for one that is not in the request itself."""
    found = taken(f"{at}.source", taken(at, block, BLOCK_IMAGE, idle).get("source"), BLOCK_SOURCE, idle)
    if found.get("type") != "base64":
        said = f"{at}: an image whose source is of type {shown(found.get('type'))}: {NOTHING_FETCHED}"
        raise Refusal(400, said, "unsupported_content", _param(at))
    return {"type": "image", "image": f"data:image;base64,{_said(f'{at}.source.data', found.get('data'))}"}


def _said(at: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refusal(400, f"{at} is {shown(value)}, expected a text", "invalid_value", _param(at))
    return value


def text(at: str, part: Any, idle: list[str]) -> str:
    """The text of one part of a content. Raises Refusal for one that is none."""
    given = part if isinstance(part, dict) else {"type": type(part).__name__}
    if given.get("type") not in TEXTS or not isinstance(given.get("text"), str):
        said = f"{at}: content of type {str(given.get('type'))[:60]!r} is not supported: {TEXT_ONLY}"
        raise Refusal(400, said, "unsupported_content", _param(at))
    return str(taken(at, given, TEXT, idle)["text"])
