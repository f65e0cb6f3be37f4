"""Conversations as token ids, through the chat template, with what templates are known to trip over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from minillm.engine.completion import Prompt
from minillm.llm import LLM
from minillm.media import sources
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal, too_long


def of(llm: LLM, asked: Asked, fold_system: bool = False) -> list[Prompt]:
    """Each prompt. Raises Refusal, and ValueError of the template and of pictures."""
    if asked.messages is not None:
        return [conversation(llm, asked, fold_system)]
    return [Prompt(text(llm, each) if isinstance(each, str) else each) for each in asked.prompts]


def text(llm: LLM, prompt: str, special: bool = True) -> list[int]:
    """The ids of a text. Raises Refusal where it is too long to look at."""
    if llm.tokenizer is None:
        raise Refusal(400, "this model has no tokenizer: send token ids", "invalid_value", "prompt")
    within(llm, prompt)
    return llm.tokenizer.encode(prompt, special)


def within(llm: LLM, prompt: str) -> None:
    """Refuse a text that cannot fit, before all of it is made tokens of."""
    assert llm.tokenizer is not None
    try:
        llm.tokenizer.refuse_too_long(prompt, llm.spec.context)
    except ValueError:
        raise too_long(len(prompt) // 4, 0, llm.spec.context) from None


def conversation(llm: LLM, asked: Asked, fold_system: bool = False) -> Prompt:
    """A conversation. Arguments of calls go in as objects, which most templates want, and where that does
    not work as the text that they came as. Raises Refusal for tools where the template knows of none."""
    offered = asked.tools if asked.tool_choice != "none" else []
    if asked.messages and llm.tokenizer is None:
        raise Refusal(400, "this model has no tokenizer: send token ids to /v1/completions", "invalid_value")
    template = llm.chat_template(with_tools=bool(offered))
    if offered and "tools" not in template.source:
        said = "the chat template of this model knows no tools; leave them out, or set tool_choice to none"
        raise Refusal(400, said, "unsupported_parameter", "tools")
    asked.idle += [f"template.{name}" for name in _unread(asked.variables, template.source)]
    messages = [_known_role(each, template.source) for each in asked.messages or []]
    if fold_system:
        messages = folded(messages)
    messages, found = sources.taken(messages, local=False)
    if found and (kind := llm.prompts.kind) != found[0].kind:
        only = "text" if kind is None else f"text and {kind}s"
        raise Refusal(400, f"{found[0].name}: this model takes {only} only", "unsupported_content", "messages")

    def rendered(arguments: Callable[[Any], Any]) -> str:
        return template.render(
            [_with_arguments(each, arguments) for each in messages],
            add_generation_prompt=asked.prompted,
            tools=[_shown(each) for each in offered] or None,
            variables=asked.variables,
            continue_final_message=asked.unfinished,
        )

    try:
        made = rendered(_as_object)
    except ValueError as error:
        if any(each.get("tool_calls") for each in messages):
            made = rendered(_as_text)
        elif any(each.get("role") == "system" for each in messages):
            said = f"{error}; the server's flag --fold-system puts system messages in front of the first user's"
            raise Refusal(400, said, "invalid_value", "messages") from None
        else:
            raise
    within(llm, made)
    return llm.prompts.of_text(made, found, special=False)


def _unread(variables: Mapping[str, Any], source: str) -> list[str]:
    """Settings that a template does not look at; how much to reason says whether to, so that one of these is enough."""
    known = {"enable_thinking"} if "reasoning_effort" in variables else set()
    return [name for name in variables if name not in source and name not in known]


def folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the system says in front of what the user says first, for templates without a system's turn."""
    said = [each["content"] for each in messages if each.get("role") == "system"]
    rest = [each for each in messages if each.get("role") != "system"]
    first = next((at for at, each in enumerate(rest) if each.get("role") == "user"), None)
    if not said or first is None:
        return messages
    content = rest[first]["content"]
    parts = [{"type": "text", "text": "\n\n".join([*said, ""])}]
    made = "\n\n".join([*said, content]) if isinstance(content, str) else [*parts, *content]
    return [*rest[:first], {**rest[first], "content": made}, *rest[first + 1 :]]


def _known_role(message: dict[str, Any], source: str) -> dict[str, Any]:
    is_new = message.get("role") == "developer" and "developer" not in source
    role = {"role": "system"} if is_new else {}
    return {**message, "content": message.get("content") or "", **role}


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {**tool, "function": function}


def _with_arguments(message: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        calls.append({**call, "function": {**function, "arguments": change(function.get("arguments", ""))}})
    return {**message, "tool_calls": calls}


def _as_object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return msgspec.json.decode(arguments.encode("utf-8", "replace")) if arguments.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return arguments


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
