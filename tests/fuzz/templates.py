"""Chat templates: programs of a random grammar, with loops, growth, filters and calls that are not theirs to make."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from tests.fuzz.case import CHAT, Case

Chance = random.Random
NUMBERS = [
    "0",
    "1",
    "-1",
    "3",
    "40",
    "2",
    "5",
    "3",
    "100000",
    "4000000000",
    "10**9",
    "1e9",
    "2**64",
    "1.5",
    "9" * 20,
]
NAMES = ["messages", "m", "x", "ns", "ns.x", "y", "bos_token", "eos_token", "tools", "add_generation_prompt", "loop",
         "self", "cycler", "none", "true", "caller", "varargs", "documents", "strftime_now"]  # fmt: skip
FILTERS = [
    "length", "upper", "lower", "trim", "tojson", "join", "list", "first", "last", "reverse", "sort", "unique",
    "string", "center(N)", "replace('a', E)", "indent(N)", "wordwrap(N)", "truncate(N)", "batch(N)", "slice(N)",
    "format(E)", "sum", "join(E)", "map('upper')", "map(attribute=E)", "select", "selectattr('role')",
    "groupby('role')", "int", "float", "abs", "round(N)", "urlize", "xmlattr", "pprint", "tojson(indent=N)", "random",
    "escape", "safe", "attr('__class__')", "items", "dictsort", "filesizeformat", "striptags", "title", "wordcount",
    "default(E)", "min", "max", "bogus", "urlencode",
]  # fmt: skip
CALLS = [
    "range(N)", "range(N, N, N)", "lipsum(n=N)", "cycler(E, E)", "joiner(E)", "namespace(x=E)", "dict(a=E)",
    "raise_exception(E)", "strftime_now(E)", "E.format(E)", "E.join(E)", "E.replace('', E)", "E.zfill(N)", "E.ljust(N)",
    "E.expandtabs(N)", "E.split(E)", "E.append(E)", "E.update(a=E)", "E.items()", "E.__class__", "E['__init__']",
    "E.translate({97: E})", "E.encode()", "E.splitlines()", "E.strip(E)", "messages[0].content", "m.content", "E[N]",
    "E[::N]", "E[:N]", "self.b()", "E.format_map(E)", "'{0.__class__}'.format(E)", "'%*d' % (N, 1)", "caller()", "f(E)",
    "'{:>N}'.format(1)", "'%0Nd' % 1", "E.to_bytes(N)", "E.count(E)", "E.startswith(E)",
]  # fmt: skip
SIGNS = ["+", "-", "*", "~", "/", "//", "%", "**", "==", "<", "and", "or", "in", "not in"]
BEGIN = (
    "{% set ns = namespace(x='a') %}{% set x = ['b'] %}"
    "{% macro f(a, b=1) %}{{ a }}{{ caller and caller() }}{% endmacro %}"
)


def cases(seed: int) -> Iterator[Case]:
    chance = random.Random(f"templates {seed}")
    while True:
        source = chance.choice((BEGIN, "")) + "".join(statement(chance, 0) for _ in range(chance.randint(1, 3)))
        if chance.random() < 0.1:
            at = chance.randrange(len(source) + 1)
            source = (
                source[:at] + chance.choice(("{{", "%}", "{%", "}", "\0", "{#", "{% endfor %}", "\ud7ff")) + source[at:]
            )
        config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
        yield Case(source[:100], CHAT, {"tokenizer_config.json": json.dumps(config).encode()})


def statement(chance: Chance, depth: int) -> str:
    if depth > 3:
        return "{{ m.content }}"
    inner = "".join(statement(chance, depth + 1) for _ in range(chance.randint(0, 2)))
    each = expression(chance, depth)
    kinds = [
        f"{{{{ {each} }}}}",
        f"{{{{ {each} }}}}",
        f"{{% for m in messages %}}{inner}{{% endfor %}}",
        f"{{% for m in {each} %}}{inner}{{% else %}}x{{% endfor %}}",
        f"{{% for m in range({chance.choice(NUMBERS)}) %}}{inner}{{% endfor %}}",
        f"{{% for m in messages recursive %}}{{{{ loop(messages) }}}}{inner}{{% endfor %}}",
        f"{{% if {each} %}}{inner}{{% elif x %}}{{% else %}}{{% endif %}}",
        f"{{% set x = {each} %}}",
        f"{{% set ns = namespace(x={each}) %}}{inner}",
        f"{{% set ns.x = {each} %}}",
        f"{{% set x %}}{inner}{{% endset %}}",
        f"{{% macro f(a, b={each}) %}}{inner}{{% endmacro %}}",
        f"{{% macro f(a) %}}{{{{ f(a) }}}}{inner}{{% endmacro %}}{{{{ f(1) }}}}",
        f"{{% call f(1) %}}{inner}{{% endcall %}}",
        f"{{% filter {chosen_filter(chance, depth)} %}}{inner}{{% endfilter %}}",
        f"{{% block b %}}{inner}{{% endblock %}}",
        f"{{% with x = {each} %}}{inner}{{% endwith %}}",
        f"{{% generation %}}{inner}{{% endgeneration %}}",
        f"{{% {chance.choice(('break', 'continue', 'raw', 'do x', 'autoescape true', 'debug', 'extends x'))} %}}",
        f"{{% {chance.choice(('import', 'include', 'from'))} '/etc/passwd' %}}",
        doubled(chance),
    ]
    return chance.choice(kinds)


def doubled(chance: Chance) -> str:
    """A value that becomes twice as large, or takes twice as long, with each of some steps."""
    step = chance.choice(
        ("ns.x ~ ns.x", "ns.x + ns.x", "[ns.x, ns.x]", "ns.x * 2", "ns.x.replace('a', 'aa')", "ns.x|join(ns.x)",
         "{'a': ns.x, 'b': ns.x}", "(ns.x, ns.x)", "ns.x|replace('a', 'aa')", "'%s%s' % (ns.x, ns.x)", "ns.x ** 2",
         "'{0}{0}'.format(ns.x)", "ns.x|list + ns.x|list", "ns.x|indent(99, true)", "ns.x|tojson|tojson")
    )  # fmt: skip
    end = chance.choice(("ns.x", "ns.x|length", "ns.x == ns.x", "ns.x|string|length", "ns.x|tojson|length", "''"))
    count = chance.choice((3, 20, 34, 100))
    begin = chance.choice(("'a'", "[1]", "2"))
    return (
        f"{{% set ns = namespace(x={begin}) %}}{{% for i in range({count}) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        f"{{{{ {end} }}}}"
    )


def expression(chance: Chance, depth: int) -> str:
    if depth > 3 or chance.random() < 0.45:
        return chance.choice(
            (f"({chance.choice(NUMBERS)})", chance.choice(NAMES), "'a'", '"%s{}"', "''", "[]", "{'a': 1}")
        )
    left, right = expression(chance, depth + 1), expression(chance, depth + 1)
    kinds = [
        filled(chance, chance.choice(CALLS), depth),
        filled(chance, chance.choice(CALLS), depth),
        f"({left} {chance.choice(SIGNS)} {right})",
        f"({left} {chance.choice(SIGNS)} {right})",
        f"({left})|{chosen_filter(chance, depth)}",
        f"({left})|{chosen_filter(chance, depth)}",
        f"({left} if {right} else 'b')",
        f"[{left}, {right}]",
        f"{{'role': {left}}}",
        f"not {left}",
        f"({left} is {chance.choice(('defined', 'none', 'string', 'mapping', 'iterable', 'not sameas x', 'bogus'))})",
    ]
    return chance.choice(kinds)


def chosen_filter(chance: Chance, depth: int) -> str:
    return filled(chance, chance.choice(FILTERS), depth + 1)


def filled(chance: Chance, text: str, depth: int) -> str:
    """E and N replaced by an expression and a number."""
    parts = [
        expression(chance, depth + 1) if each == "E" else chance.choice(NUMBERS) if each == "N" else each
        for each in text
    ]
    return "".join(parts)
