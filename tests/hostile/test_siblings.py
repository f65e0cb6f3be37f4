"""Siblings of the inputs that once broke something: of each kind what no generator and no other test is sure to try."""

from __future__ import annotations

import base64
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.case import CHAT, EXPLAIN, GENERATE, PLAN, Case
from tests.fuzz.honest import CONFIG, TOKENIZER, as_bytes
from tests.fuzz.pool import FINE, REFUSED, Worker
from tests.fuzz.safetensors_files import HEADER, INDEX, WHOLE, packed
from tests.fuzz.spm import honest as spm_fields
from tests.fuzz.spm import message
from tests.fuzz.torch_files import BIN, members, saved, zipped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the worker forks, and measures by /proc")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as made:
        yield made


def doubled(step: str, end: str = "ns.x|length", begin: str = "'a'") -> str:
    loop = f"{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(x={begin}) %}}{loop}{{{{ {end} }}}}"


LONG = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
TWICE = "{% set x = fI() if J else '' %}" * 2
MACROS = "".join(
    "{% macro fJ() %}BODY{% endmacro %}".replace("BODY", TWICE).replace("I", str(i - 1)).replace("J", str(i))
    for i in range(40)
)
# Programs that would not end, or would take gigabytes.
TEMPLATES = {
    "a macro in a loop": "{% macro f() %}{% endmacro %}" + LONG.replace("BODY", "{% set x = f() %}"),
    "a set block in a loop": LONG.replace("BODY", "{% set x %}a{% endset %}"),
    "a condition in a loop": LONG.replace("BODY", "{% if a > b %}{% endif %}"),
    "a filter in a loop": LONG.replace("BODY", "{% set x = 'a'|upper %}"),
    "a loop that goes on": LONG.replace("BODY", "{% continue %}"),
    "a loop with a condition": "{% for a in range(99999) if range(99999)|sum < 0 %}{% endfor %}",
    "loops in expressions": "{{ range(99999)|map('string')|map('length')|sum }}" * 300,
    "macros that call each other twice": MACROS + "{% set x = f39() %}",
    "join": doubled("[ns.x, ns.x]|join"),
    "join of itself": doubled("ns.x|join(ns.x)", begin="'ab'"),
    "replace in a filter": doubled("ns.x|replace('a', 'aa')"),
    "format": doubled("'%s%s'|format(ns.x, ns.x)"),
    "the method format": doubled("'{0}{0}'.format(ns.x)"),
    "percent": doubled("'%s%s' % (ns.x, ns.x)"),
    "lists": doubled("ns.x + ns.x", begin="[1]"),
    "set blocks": doubled("'a'").replace("{% set ns.x = 'a' %}", "{% set x %}{{ x }}{{ x }}a{% endset %}"),
    "the method translate": doubled("ns.x.translate({97: 'aa'})"),
    "the method join": doubled("ns.x.join([ns.x, ns.x])"),
    "dictionaries to JSON": doubled("{'a': ns.x, 'b': ns.x}", "ns.x|tojson|length"),
    "lists to text": doubled("[ns.x, ns.x]", "ns.x|string|length"),
    "lists that are compared": doubled("[ns.x, ns.x]", "ns.x == ns.x|list"),
    "tuples to text": doubled("(ns.x, ns.x)", "'%s' % (ns.x,)"),
    "a hash of tuples": doubled("(ns.x, ns.x)", "{ns.x: 1}"),
    "lists in lists": doubled("[ns.x, ns.x]", "ns.x in [ns.x|list]"),
    "powers": doubled("ns.x * ns.x", begin="3"),
    "ljust": "{{ 'a'.ljust(4000000000)|length }}",
    "zfill": "{{ 'a'.zfill(4000000000)|length }}",
    "center as a block": "{% filter center(4000000000) %}a{% endfilter %}",
    "expandtabs": "{{ '\\t'.expandtabs(2000000000)|length }}",
    "a width that is formatted": "{{ '{:>4000000000}'.format(1)|length }}",
    "a width that is a star": "{{ '%*d' % (2000000000, 1) }}",
    "an f-like format": "{{ '%4000000000d'|format(1)|length }}",
    "indent": "{{ 'a\\nb'|indent(2000000000)|length }}",
    "indented JSON": "{{ [1]|tojson(indent=2000000000)|length }}",
    "a range as a list": "{{ range(99999)|list|length }}" * 30 + doubled("ns.x + ns.x", begin="range(99999)|list"),
    "slices": "{{ 'a'|list|slice(200000000)|list|length }}",
    "batches": "{{ 'a'|list|batch(2000000000, 'x')|list|length }}",
    "bytes of a number": "{{ (1).to_bytes(2000000000, 'big')|length }}",
    "digits of a number": "{{ (2 ** 64) ** 64 ** 64 }}",
    "wordwrap": "{{ ('a ' * 1000000)|wordwrap(1)|wordwrap(1, wrapstring='a' * 10000)|length }}",
    "urlize": "{{ ('http://a.b ' * 300000)|urlize|urlize|urlize|length }}",
    "a filter that gives a list": "{% filter list %}a{% endfilter %}",
    "recursion": "{% macro f(a) %}{{ f(a) }}{% endmacro %}{{ f(1) }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str, worker: Worker) -> None:
    """Refused, or done in bounded time and memory."""
    config = {"bos_token": "<s>", "chat_template": TEMPLATES[name]}
    bears(worker, Case(name, CHAT, {"tokenizer_config.json": as_bytes(config)}), REFUSED, FINE)


def charsmap(claimed: int, data: bytes = b"") -> str:
    return base64.b64encode(struct.pack("<I", claimed) + data).decode()


def precompiled(data: str) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": data}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(of: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", of: list(steps)}


GROWING = [replace({"String": "a"}, "aa")] * 40
SLOW = {"Regex": "(x+x+)+y"}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "a charsmap in a sequence": {
        "normalizer": sequence("normalizers", {"type": "NFC"}, precompiled(charsmap(2**31)))
    },
    "a charsmap that ends early": {"normalizer": precompiled(charsmap(1024, b"x" * 99))},
    "a charsmap of nothing": {"normalizer": precompiled("")},
    "growth that a regex makes": {"normalizer": sequence("normalizers", *[replace({"Regex": "."}, "aa")] * 40)},
    "growth between letters": {"normalizer": sequence("normalizers", *[replace({"Regex": ""}, "aa")] * 40)},
    "growth in steps": {"normalizer": sequence("normalizers", *[sequence("normalizers", *GROWING[:5])] * 8)},
    "growth of two letters": {
        "normalizer": sequence("normalizers", *[replace({"String": "a"}, "bb"), replace({"String": "b"}, "aa")] * 20)
    },
    "growth of what comes out": {"decoder": sequence("decoders", replace({"Regex": "."}, "a"), *GROWING)},
    "a slow regex that splits": {
        "pre_tokenizer": {"type": "Split", "pattern": SLOW, "behavior": "Isolated", "invert": False}
    },
    "a slow regex of what comes out": {
        "decoder": sequence("decoders", replace({"Regex": "."}, "x" * 40), replace(SLOW, ""))
    },
    "a template of tokens that are not there": {
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [],
            "special_tokens": {},
        }
    },
    "a prefix that is half a letter": {
        "model": {**TOKENIZER["model"], "continuing_subword_prefix": "é", "merges": [["t", "h"]]}
    },
    "pieces of no length": {"pre_tokenizer": sequence("pretokenizers", {"type": "FixedLength", "length": 0})},
    "an unknown piece": {"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}},
    "no piece": {"model": {"type": "Unigram", "vocab": [], "unk_id": None}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name: str, worker: Worker) -> None:
    """One line whatever the library does: panics, aborts and growth. A text may also come."""
    argv = ["the a " + "x" * 40 if each == "the" else each for each in GENERATE]
    files: dict[str, bytes | None] = {"tokenizer.json": as_bytes({**TOKENIZER, **TOKENIZERS[name]})}
    bears(worker, Case(name, argv, files), REFUSED, FINE)


def pickled(program: bytes) -> bytes:
    return zipped({**members(saved()), "archive/data.pkl": program})


NESTED = b")" + b"2\x86" * 45  # (), then 45 times DUP and TUPLE2
PICKLES = {
    "a key inside a key": b"\x80\x02}(" + NESTED + b"K\x01u.",
    "a key that is built later": b"\x80\x02ccollections\nOrderedDict\n)R" + NESTED + b"K\x01s.",
    "a key of a memo": b"\x80\x02" + NESTED + b"q\x010}h\x01K\x01s.",
    "a bytearray in a list": b"\x80\x02](cbuiltins\nbytearray\nJ\xf6\xff\xff\x7f\x85Re.",
    "a text of 2 GB": b"\x80\x02}X\xff\xff\xff\x7f",
    "a long number": b"\x80\x02}U\x01a\x8b\xff\xff\xff\x7f",
    "a memo far away": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a set, of a later protocol": b"\x80\x04\x8f(K\x01\x90.",
    "a call of the system": b"cos\nsystem\n(S'true'\ntR.",
}
ZIPS = {"deflated": "archive/data/0", "short": "archive/data/3", "twice": "archive/data/1", "gone": "archive/data/2"}


def rezipped(kind: str) -> bytes:
    parts, name = members(saved()), ZIPS[kind]
    if kind == "deflated":
        return zipped(parts, frozenset({name}))
    if kind == "twice":
        return zipped(parts, twice=name)
    if kind == "gone":
        return zipped({key: data for key, data in parts.items() if key != name})
    return zipped({**parts, name: parts[name][:-4]})


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name: str, worker: Worker) -> None:
    bears(worker, Case(name, GENERATE, {"model.safetensors": None, BIN: pickled(PICKLES[name])}), REFUSED)


@pytest.mark.parametrize("kind", ZIPS)
def test_zips(kind: str, worker: Worker) -> None:
    """What would be read is not what the directory says."""
    bears(worker, Case(kind, GENERATE, {"model.safetensors": None, BIN: rezipped(kind)}), REFUSED)


def test_values_with_another_sum(worker: Worker) -> None:
    data = bytearray(saved())
    at = data.index(members(bytes(data))["archive/data/0"])
    data[at] ^= 1
    bears(worker, Case("sum", GENERATE, {"model.safetensors": None, BIN: bytes(data)}), REFUSED)


HEAD = json.dumps(HEADER)
HEADERS: dict[str, bytes] = {
    "UTF-32": packed(HEAD.encode("utf-32")),
    "UTF-16 without a mark": packed(HEAD.encode("utf-16-le")),
    "a shape twice": packed(HEAD.replace('"shape"', '"shape": [1], "shape"', 1)),
    "a tensor twice": packed(HEAD[:-1] + f', "lm_head.weight": {json.dumps(HEADER["lm_head.weight"])}}}'),
    "a key of its own": packed(HEAD.replace('"dtype"', '"more": 1, "dtype"', 1)),
    "metadata of numbers": packed(HEAD.replace('"pt"', "1")),
    "not a number": packed(HEAD.replace('"pt"', "NaN")),
    "a blank before": packed(" " + HEAD),
    "half a letter": packed(HEAD.replace('"pt"', '"\\ud800"')),
    "a million brackets": packed('{"a": [' + ",".join(["[]"] * 1_500_000) + "]}"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, worker: Worker) -> None:
    """What the safetensors library refuses."""
    bears(worker, Case(name, GENERATE, {"model.safetensors": HEADERS[name]}), REFUSED)


def config(**changes: Any) -> dict[str, bytes | None]:
    return {"config.json": as_bytes({**CONFIG, **changes})}


PLACE = {name: "a.safetensors" for name in HEADER if name != "__metadata__"}
FILES: dict[str, tuple[list[str], dict[str, bytes | None]]] = {
    "an index with two maps": (
        GENERATE,
        {
            INDEX: b'{"weight_map": {}, ' + as_bytes({"weight_map": PLACE})[1:],
            "a.safetensors": WHOLE,
            "model.safetensors": None,
        },
    ),
    "a charsmap in SentencePiece": (
        GENERATE,
        {
            "tokenizer.json": None,
            "tokenizer.model": b"".join([*spm_fields(), message(3, message(2, struct.pack("<I", 2**31)))]),
        },
    ),
    "an added token of no letters": (
        GENERATE,
        {"tokenizer.json": None, "tokenizer.model": b"".join(spm_fields()), "added_tokens.json": b'{"": 40}'},
    ),
    "a SentencePiece model of nothing": (GENERATE, {"tokenizer.json": None, "tokenizer.model": b""}),
    "two dashes for a value": ([*PLAN, "--weights=--"], {}),
    "a config in itself": (PLAN, config(text_config={**CONFIG, "text_config": CONFIG})),
    "40 MB of config": (EXPLAIN, config(id2label={str(i): "x" for i in range(2_500_000)})),
    "a config that is compressed": (EXPLAIN, {"config.json": zlib.compress(as_bytes(CONFIG))}),
    "a top_p of 400 digits": (
        GENERATE,
        {"generation_config.json": b'{"do_sample": true, "top_p": 1' + b"0" * 400 + b"}"},
    ),
    "a section that is a list": (GENERATE, config(quantization_config=["fp8"])),
}  # fmt: skip
JSON = "config tokenizer_config generation_config special_tokens_map added_tokens chat_template tokenizer".split()
PLACES = [*(f"{name}.json" for name in JSON), "chat_template.jinja", "README.md"]
# And what may run, in one line or none.
BORNE = {"a config in itself", "a charsmap in SentencePiece"}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, worker: Worker) -> None:
    argv, files = FILES[name]
    bears(worker, Case(name, argv, files), REFUSED, *([FINE] if name in BORNE else []))


@pytest.mark.parametrize("name", PLACES)
def test_a_folder_in_place_of_a_file(name: str, worker: Worker) -> None:
    """Is not the same as no file."""
    argv = CHAT if name.startswith("chat") else PLAN if name == "README.md" else GENERATE
    bears(worker, Case(name, argv, {name: None, f"{name}/x": b""}), REFUSED)


def bears(worker: Worker, case: Case, *verdicts: str) -> None:
    outcome = worker.run(case)
    assert outcome.verdict in verdicts, (outcome.verdict, outcome.said[:500], outcome.seconds, outcome.grown)
