"""A request as the server knows it, whatever API it came by. Each API makes one of these, and of what comes back its
own kind of answer.

Messages and tools are as chat templates take them: {"role", "content", "tool_calls", …} and {"type": "function",
"function": {"name", "description", "parameters"}}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from minillm.guard.screen import shown
from minillm.ops.draw import MIN_TEMPERATURE
from minillm.serve import settings
from minillm.serve.errors import Refusal
from minillm.serve.fields import depth

# Fields that the APIs share, with OpenAI's limits.
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
# What a request may tell a chat template: settings of the model, and nothing that says how to render.
VARIABLES = ("enable_thinking", "thinking", "reasoning_effort", "thinking_budget", "preserve_thinking", "date_string")


@dataclass
class Asked:
    """One request. Of `messages` and `prompts` one is given; `prompts` are texts or ids. `tool_choice` is "none",
    "auto", "required" or "named", which goes with `tool`. `options` are those of `LLM.completion`, and `most` is how
    many tokens may be written: with `clamp` what is left of the context where that is less, else it is refused."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompts: list[Any] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    tool: str | None = None
    parallel: bool = True
    response_format: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    most: int | None = None
    clamp: bool = False
    n: int = 1
    stream: bool = False
    variables: dict[str, Any] = field(default_factory=dict)
    unfinished: bool | None = None  # whether the last message is to be gone on with; None: where it is the assistant's
    prompted: bool = True  # whether the template begins the assistant's turn
    parse: bool = True  # look for calls and reasoning, as in a conversation
    salt: str = ""
    priority: int = 0
    idle: list[str] = field(default_factory=list)  # fields that were accepted without effect

    @property
    def strict(self) -> bool:
        """Whether a tool asks for arguments that its schema allows."""
        return any(tool["function"].get("strict") for tool in self.tools)


def sampling(
    temperature: float | None = None, top_p: float | None = None, top_k: int | None = None, seed: int | None = None,
    min_p: float | None = None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """Options of `LLM.completion`, of what an API was given. A temperature too small to divide by is greedy, a top_p of
    0 is the likeliest token, a top_k of -1 all, and what is without meaning at temperature 0 is left out."""
    if temperature is not None and temperature < MIN_TEMPERATURE:
        return {"temperature": 0.0, **_given(others)}
    if top_p == 0:
        top_p, top_k = None, 1
    found = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0 if top_k == -1 else top_k,
        "min_p": min_p,
        "seed": None if seed is None else seed % 2**63,
    }
    return {**_given(found), **_given(others)}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def stops(value: str | list[str] | None, most: int = settings.MAX_STOPS) -> list[str] | None:
    """Stop strings. Raises Refusal."""
    found = [value] if isinstance(value, str) else value or []
    if len(found) > most:
        raise Refusal(400, f"stop has {len(found)} strings, at most {most} are allowed", "invalid_value", "stop")
    if any(not each or len(each) > settings.MAX_STOP_CHARS for each in found):
        said = f"stop has a string that is empty or longer than {settings.MAX_STOP_CHARS} characters"
        raise Refusal(400, said, "invalid_value", "stop")
    return found or None


def biases(value: dict[str, float] | None) -> dict[int, float] | None:
    """Token ids with what is added to their logits. Raises Refusal."""
    if value and len(value) > settings.MAX_BIASES:
        said = f"logit_bias has {len(value):,} tokens, at most {settings.MAX_BIASES:,} are allowed"
        raise Refusal(400, said, "invalid_value", "logit_bias")
    for token, bias in (value or {}).items():
        if not re.fullmatch("[0-9]{1,9}", token, re.ASCII) or not -100 <= bias <= 100:
            said = f"logit_bias has {shown(token)}: {bias}, expected a token id and a number from -100 to 100"
            raise Refusal(400, said, "invalid_value", "logit_bias")
    return {int(token): bias for token, bias in value.items()} if value else None


def tool(at: str, given: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """A tool as templates take it, of its name, description and strict, and the schema of its arguments. Raises Refusal
    for a name or a schema that cannot be."""
    name = given.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        said = f"{at}: {shown(name)} is no name; use up to 128 letters, digits, _, - and ."
        raise Refusal(400, said, "invalid_value", "tools")
    schema(parameters, f"{at}: the parameters of {name}")
    made = {"name": name, "description": str(given.get("description") or ""), "parameters": parameters or EMPTY}
    return {"type": "function", "function": made | ({"strict": True} if given.get("strict") else {})}


EMPTY = {"type": "object", "properties": {}}


def schema(value: Any, what: str) -> None:
    """Raises Refusal for what is no JSON schema of a size that a person writes."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise Refusal(400, f"{what}: expected a JSON schema, which is an object", "invalid_schema")
    if (size := len(msgspec.json.encode(value))) > settings.MAX_SCHEMA_BYTES:
        said = f"{what}: the schema has {size:,} bytes, at most {settings.MAX_SCHEMA_BYTES:,} are allowed"
        raise Refusal(400, said, "invalid_schema")
    if depth(value) > settings.MAX_SCHEMA_DEPTH:
        said = f"{what}: the schema is nested deeper than {settings.MAX_SCHEMA_DEPTH} levels"
        raise Refusal(400, said, "invalid_schema")


def form(given: dict[str, Any], what: str) -> dict[str, Any]:
    """A schema as the form of an answer. Raises Refusal."""
    schema(given, what)
    return {"type": "json_schema", "json_schema": {"schema": given}}


def tools(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools of one request. Raises Refusal for too many, and for two of one name."""
    if len(made) > settings.MAX_TOOLS:
        said = f"tools has {len(made)} of them, at most {settings.MAX_TOOLS} are allowed"
        raise Refusal(400, said, "invalid_value", "tools")
    names = [each["function"]["name"] for each in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refusal(400, f"tools has two of the name {twice[0]!r}", "invalid_value", "tools")
    return made


def choose(asked: Asked, choice: str, name: str | None = None) -> None:
    """Set which tools are to be called. Raises Refusal for one that is not there."""
    names = [each["function"]["name"] for each in asked.tools]
    if choice == "named" and name not in names:
        said = f"tool_choice names {shown(name)}, which is no tool of this request"
        raise Refusal(400, said, "invalid_value", "tool_choice")
    if choice == "required" and not names:
        raise Refusal(400, "tool_choice asks for a call, there are no tools", "invalid_value", "tool_choice")
    asked.tool_choice, asked.tool = choice if names else "none", name


def effort(asked: Asked, value: str | None) -> None:
    """How much the model is to reason, as templates are told."""
    if value is not None:
        asked.variables.setdefault("reasoning_effort", value)
        asked.variables.setdefault("enable_thinking", value != "none")


def variables(value: dict[str, Any] | None) -> dict[str, Any]:
    """What a chat template is told. Raises Refusal for anything but settings of the model."""
    for name, each in (value or {}).items():
        if name not in VARIABLES or not isinstance(each, (str, int, float, bool, type(None))):
            said = f"chat_template_kwargs: {shown(name)} is not allowed; allowed are plain {', '.join(VARIABLES)}"
            raise Refusal(400, said, "invalid_value", "chat_template_kwargs")
    return {name: each for name, each in (value or {}).items() if each is not None}
