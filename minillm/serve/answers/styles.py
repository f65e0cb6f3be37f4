"""The table of formats in which models call tools and think; a row is chosen by what the chat template says.

A call is OPEN lead BODY closes, where the body is one of `bodies.BODIES`, or "json", read as it comes (`jsoncalls.py`).
Formats are those of SGLang's and vLLM's parsers, and of published templates; names say what a format looks like.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass, field


@dataclass(frozen=True)
class Thinking:
    """Reasoning stands between two marks. Those that are ordinary text count where nothing but white space is before
    them: elsewhere they are talked about. `behind` is what leads to the answer, for grammars."""

    opens: str
    closes: str
    anywhere: bool = False
    behind: str = ""


@dataclass(frozen=True)
class Form:
    """How calls are written, for grammars: `start`, calls with `join` between them, `end`; of a call the text around
    its arguments, with NAME and NUMBER in it. Where these are not JSON, `item` is what stands around the value of a
    parameter, with KEY and STRING (true or false) in it, `comma` between two, and `quote` around a string."""

    before: str
    after: str
    start: str = ""
    join: str = ""
    end: str = ""
    item: tuple[str, str] | None = None
    comma: str = ""
    quote: str = ""  # "JSON": a string is written as JSON has it


THINK = (Thinking("<think>", "</think>"),)
NAMED = '{"name": "NAME", "arguments": '


@dataclass(frozen=True)
class Style:
    """One format: `body` is empty where tools cannot be called."""

    name: str
    body: str = ""
    opens: tuple[str, ...] = ()
    lead: str = r"\s*"  # between an opening mark and the body; may name the call's "name" and "id"
    closes: tuple[str, ...] = ()  # what may stand behind the body, in this order
    joint: str = ""  # a character behind a call that leads to another
    bare: str = ""  # what opens a call at the beginning of an answer, and belongs to the body
    drops: tuple[str, ...] = ()  # marks of sections, which are not shown
    thinking: tuple[Thinking, ...] = THINK
    channels: bool = False  # messages with headers: START role CHANNEL name MESSAGE body END
    ids: str = "call"  # how calls are numbered: "call", or "nine" letters and digits
    signs: tuple[tuple[str, ...], ...] = ()  # the template has all strings of one of these
    turns: tuple[str, ...] = ()  # what an answer begins behind, in place of `TURN`
    form: Form | None = field(default=None, compare=False)

    @property
    def turn(self) -> re.Pattern[str]:
        """What an answer begins behind."""
        return re.compile("|".join(map(re.escape, self.turns))) if self.turns else TURN

    @property
    def texts(self) -> list[str]:
        """All that is written in it, marks among it."""
        layer, found = [*astuple(self)], []
        while layer:
            each = layer.pop()
            if isinstance(each, str):
                found.append(each)
            elif isinstance(each, tuple):
                layer += each
        return found


_FENCE = "```"
_CALL_END = "<｜tool▁call▁end｜>"
_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
_BRAND = "<|plamo:{}:plamo|>"
_NAME, _ARGUMENTS = _BRAND.format("begin_tool_name"), _BRAND.format("begin_tool_arguments")
_NAME_END, _ARGUMENTS_END = _BRAND.format("end_tool_name"), _BRAND.format("end_tool_arguments")
_REQUEST, _REQUEST_END = _BRAND.format("begin_tool_request"), _BRAND.format("end_tool_request")
_REQUESTS = (_BRAND.format("begin_tool_requests"), _BRAND.format("end_tool_requests"))
_CONSTRAIN = "<|plamo:constrain|>json<|plamo:msg|>"

# The first row whose signs a template has is taken: special cases stand before what they are special cases of.
_ROWS = (
    Style(
        "channels", "json", channels=True, thinking=(), closes=("<|call|>",), signs=(("<|channel|>", "<|message|>"),),
        form=Form("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>", ""),
    ),
    Style(
        "quoted", "unquoted", ("<|tool_call>",), closes=("<tool_call|>",), signs=(("<|tool_call>",),),
        drops=("<|tool_response>",), thinking=(Thinking("<|channel>thought\n", "<channel|>", anywhere=True),),
        form=Form("<|tool_call>call:NAME{", "}<tool_call|>", item=("KEY:", ""), comma=",", quote='<|"|>'),
    ),
    Style(
        "escaped", "escaped", ("<start_function_call>",), closes=("<end_function_call>",),
        signs=(("<start_function_call>",),), drops=("<start_function_response>",),
        form=Form(
            "<start_function_call>call:NAME{", "}<end_function_call>", item=("KEY:", ""), comma=",", quote="<escape>",
        ),
    ),
    Style(
        "dsml", "dsml", ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
        closes=("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"), signs=(("｜DSML｜",),),
        form=Form(
            '<｜DSML｜invoke name="NAME">\n', "</｜DSML｜invoke>\n", "<｜DSML｜function_calls>\n", "",
            "</｜DSML｜function_calls>",
            ('<｜DSML｜parameter name="KEY" string="STRING">', "</｜DSML｜parameter>\n"),
        ),
    ),
    Style(
        "fenced", "json", ("<｜tool▁call▁begin｜>",), r"\s*function<｜tool▁sep｜>(?P<name>[^\n<]+)\n```json\s*",
        (_FENCE, _CALL_END), drops=_SECTION, signs=(("<｜tool▁call▁begin｜>", "```json"),),
        form=Form(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n", f"\n{_FENCE}{_CALL_END}", *_SECTION[:1], "\n",
            _SECTION[1],
        ),
    ),
    Style(
        "separated", "json", ("<｜tool▁call▁begin｜>",), r"\s*(?P<name>[^\s<]+)<｜tool▁sep｜>\s*", (_CALL_END,),
        drops=_SECTION, signs=(("<｜tool▁call▁begin｜>",),),
        form=Form("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", _CALL_END, _SECTION[0], "", _SECTION[1]),
    ),
    Style(
        "counted", "json", ("<|tool_call_begin|>",),
        r"\s*(?P<id>(?:functions\.)?(?P<name>[^\s:<]+):\d+)\s*<\|tool_call_argument_begin\|>\s*",
        ("<|tool_call_end|>",), drops=_KIMI, signs=(("<|tool_call_begin|>",),),
        form=Form(
            "<|tool_call_begin|>functions.NAME:NUMBER<|tool_call_argument_begin|>", "<|tool_call_end|>", _KIMI[0], "",
            _KIMI[1],
        ),
    ),
    Style(
        "requests", "json", (_REQUEST,),
        r"\s*" + re.escape(_NAME) + r"(?P<name>[^<]+)" + re.escape(_NAME_END + _ARGUMENTS)
        + "(?:" + re.escape(_CONSTRAIN) + r")?\s*",
        (_ARGUMENTS_END, _REQUEST_END), drops=_REQUESTS, signs=((_REQUEST,),),
        form=Form(
            f"{_REQUEST}{_NAME}NAME{_NAME_END}{_ARGUMENTS}{_CONSTRAIN}", _ARGUMENTS_END + _REQUEST_END, _REQUESTS[0],
            "", _REQUESTS[1],
        ),
    ),
    Style(
        "pairs", "pairs", ("<tool_call>",), closes=("</tool_call>",), signs=(("<tool_call>", "<arg_key>"),),
        form=Form(
            "<tool_call>NAME\n", "</tool_call>", join="\n",
            item=("<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>\n"),
        ),
    ),
    Style(
        "functions", "functions", ("<tool_call>",), closes=("</tool_call>",), signs=(("<tool_call>", "<function="),),
        form=Form(
            "<tool_call>\n<function=NAME>\n", "</function>\n</tool_call>", join="\n",
            item=("<parameter=KEY>\n", "\n</parameter>\n"),
        ),
    ),
    Style(
        "prefixed", "functions", ("<seed:tool_call>",), closes=("</seed:tool_call>",), signs=(("<seed:tool_call>",),),
        thinking=(Thinking("<seed:think>", "</seed:think>"),),
        form=Form(
            "<seed:tool_call>\n<function=NAME>\n", "</function>\n</seed:tool_call>", join="\n",
            item=("<parameter=KEY>", "</parameter>\n"),
        ),
    ),
    Style(
        "parted", "json", ("<|tool_call:begin|>",),
        r"\s*(?P<id>[\w-]*)\s*<\|tool_call:name\|>(?P<name>[^<]+)<\|tool_call:args\|>\s*", ("<|tool_call:end|>",),
        drops=("<|begin|>assistant", "<|content|>", "<|tool_calls|>", "<|calls|>", "<|flush|>", "<|end|>"),
        thinking=(Thinking("<|think|>", "<|end|>", anywhere=True, behind="<|begin|>assistant"),),
        signs=(("<|tool_call:begin|>",),),
        form=Form(
            "<|tool_call:begin|>NUMBER<|tool_call:name|>NAME<|tool_call:args|>", "<|tool_call:end|>", "<|tool_calls|>",
            "", "<|calls|>",
        ),
    ),
    Style(
        "tagged", "json", ("<tool_call>",), closes=("</tool_call>",), signs=(("<tool_call>",),),
        form=Form(f"<tool_call>\n{NAMED}", "}\n</tool_call>", join="\n"),
    ),
    Style(
        "named", "json", ("[TOOL_CALLS]",),
        r"\s*(?P<name>[^\s\[\]{}]+)(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?\s*", ids="nine",
        thinking=(Thinking("[THINK]", "[/THINK]", anywhere=True), *THINK), signs=(("[TOOL_CALLS]", "[ARGS]"),),
        form=Form("[TOOL_CALLS]NAME[ARGS]", ""),
    ),
    Style(
        "array", "json", ("[TOOL_CALLS]",), r"\s*\[\s*", ("]",), ",", ids="nine", signs=(("[TOOL_CALLS]",),),
        form=Form(NAMED, "}", "[TOOL_CALLS] [", ", ", "]"),
    ),
    Style(
        "marked-array", "json", ("<|tool_call|>",), r"\s*\[\s*", ("]",), ",", signs=(("<|tool_call|>",),),
        form=Form(NAMED, "}", "<|tool_call|>[", ", ", "]"),
    ),
    Style(
        "called-array", "json", ("functools",), r"\s*\[\s*", ("]",), ",",
        signs=(("functools",), ("<|tool|>", "<|/tool|>")), form=Form(NAMED, "}", "functools[", ", ", "]"),
    ),
    Style(
        "listed", "lines", ("<function_calls>",), closes=("</function_calls>",), signs=(("<function_calls>",),),
        form=Form("NAME(", ")", "<function_calls>", "\n", "</function_calls>", ("KEY=", ""), ", ", "JSON"),
    ),
    Style(
        "python", "python", ("<|python_start|>",), bare="[", closes=("<|python_end|>",),
        signs=(("func_name1(",), ("<|python_start|>",)),
        form=Form("NAME(", ")", "[", ", ", "]", ("KEY=", ""), ", ", "JSON"),
    ),
    Style(
        "bare", "json", ("<|python_tag|>",), joint=";", bare="{",
        signs=(("<|python_tag|>",), ('"name": function name, "parameters"',)),
        form=Form('{"name": "NAME", "parameters": ', "}", join="; "),
    ),
    Style("none", signs=((),)),
)  # fmt: skip
styles: dict[str, Style] = {row.name: row for row in _ROWS}

# Where an answer begins in a rendered prompt: what a user wrote stands before the last of these.
TURN = re.compile(
    r"<\|im_start\|>\w+\n|<\|start_header_id\|>\w+<\|end_header_id\|>\n*|<｜Assistant｜>|<\|assistant\|>\n?|\[/INST\]"
    r"|<\|turn>\w+\n|<start_of_turn>\w+\n|<\|start_of_role\|>\w+<\|end_of_role\|>|<tool_response\|>"
    r"|<\|im_assistant\|>\w+<\|im_middle\|>|(?=<\|start\|>)|\[/TOOL_RESULTS\]|<\|begin\|>assistant|<｜tool▁outputs▁end｜>|<\|header_end\|>\n*"
)


def style_of(template_source: str | None) -> Style:
    """The format that a chat template asks for or writes itself; "none" where it knows of no tools."""
    source = template_source or ""
    return next(row for row in _ROWS if any(all(sign in source for sign in signs) for signs in row.signs))
