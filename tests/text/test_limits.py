"""What a text, a template or a model by sentencepiece may cost, and settings that are no settings."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import sentencepiece

import minillm
from minillm.guard import child, memory
from minillm.hub import DEMO
from minillm.text import chat, spm
from minillm.text.chat import ChatTemplate, find
from minillm.text.tokenizer import Tokenizer

LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}BODY{% endfor %}{% endfor %}"
ENDLESS = {
    "nothing": LOOP.replace("BODY", ""),
    "set": LOOP.replace("BODY", "{% set x = j %}"),
    "macro": "{% macro m() %}" + LOOP.replace("BODY", "") + "{% endmacro %}{{ m() }}",
    "cycler": "{% set c = cycler('a', 'b') %}" + LOOP.replace("BODY", "{% set _ = c.next() %}"),
    "lipsum": "{{ lipsum(n=10 ** 8) }}",
    "equal": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "power": "{% set n = namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.text.chat.MAX_SECONDS", 1.0)
    template = ChatTemplate(source, {})
    with pytest.raises(ValueError, match=r"it took more than .* seconds"):
        template.render([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])


def test_a_template_that_is_folded_for_ever_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.text.chat.MAX_SECONDS", 1.0)
    with pytest.raises(ValueError, match="does not compile"):
        ChatTemplate("{{ ('a ' * 10 ** 7)|wordwrap(2) }}", {})


def test_templates_warn_of_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """As Python does of the code that this one becomes, which is compiled elsewhere."""
    assert ChatTemplate("{{ (1)('a') if false else 'b' }}", {}).render([]) == "b"
    assert capfd.readouterr().err == ""


def test_the_process_for_templates_starts_while_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there will be a chat; and nobody waits for it, or fails for the lack of it."""
    made = child.Child("minillm.text.rendering")
    monkeypatch.setattr(chat, "_templates", made)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    chat.expect()
    assert made._process is None
    monkeypatch.undo()
    monkeypatch.setattr(chat, "_templates", made)
    llm = minillm.load()
    assert made._process is None
    chat.expect()
    process = made._process
    assert process is not None
    assert not made._prepared
    assert llm.chat_prompt([{"role": "user", "content": "hi"}])
    assert made._process is process
    made.close()


def test_no_process_is_not_said_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_templates", child.Child("minillm.text.rendering"))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(ChildProcessError, match="no process of its own"):
        ChatTemplate("x", {})


def test_a_refusal_is_bounded() -> None:
    with pytest.raises(ValueError, match=r"15,000,000 characters") as caught:
        ChatTemplate("{{ raise_exception('x' * 15000000) }}", {}).render([])
    assert len(str(caught.value)) < 1200


def test_variables_that_hold_themselves() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="template variables are nested too deeply"):
        ChatTemplate("x", {}).render([], variables={"a": loop})
    with pytest.raises(ValueError, match="tools are nested too deeply"):
        ChatTemplate("x", {}).render([], tools=[{"a": loop}])


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_folder_in_place_of_a_template(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: a folder, expected a file"):
        find(tmp_path, {"chat_template": "x"})


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_folder_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: a folder, expected a file"):
        Tokenizer(tmp_path)


def test_a_prompt_that_cannot_fit_is_not_made_tokens_of(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = minillm.load()
    seen: list[int] = []
    encode = type(llm.tokenizer.backend).encode

    def watched(self: object, text: str, special: bool) -> list[int]:
        seen.append(len(text))
        return encode(self, text, special)

    monkeypatch.setattr(type(llm.tokenizer.backend), "encode", watched)
    text = "Once upon a time there was a fox. " * 100_000
    with pytest.raises(ValueError, match=rf"3,400,000 characters.*the context {llm.spec.context}"):
        llm.generate(text)
    with pytest.raises(ValueError, match=rf"characters.*the context {llm.spec.context}"):
        llm.generate(messages=[{"role": "user", "content": text}])
    assert max(seen) <= 40 * llm.spec.context


def test_a_long_prompt_of_few_tokens_is_not_refused() -> None:
    tokenizer = Tokenizer(DEMO)
    text = "<s>" * 5000
    count = len(tokenizer.encode(text, special=False))
    tokenizer.refuse_too_long(text, count)
    with pytest.raises(ValueError, match="more than"):
        tokenizer.refuse_too_long("fox " * 5000, 512)


def test_text_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(DEMO)
    monkeypatch.setattr(memory, "available", lambda: 100_000_000)
    with pytest.raises(ValueError, match=r"1,500,000 characters takes 0\.4 GB and 0\.1 GB are left; give less text"):
        tokenizer.encode("word " * 300_000)
    assert tokenizer.encode("word " * 30)


def test_the_memory_that_is_free_is_some_of_what_there_is() -> None:
    free = memory.available()
    assert free is None or 1_000_000 < free < 1 << 50


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    prefix = str(tmp_path_factory.mktemp("spm") / "m")
    sentences = iter([f"the {a} fox and {b} frogs" for a in ("red", "old") for b in range(40)] * 5)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_prefix=prefix, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    return Path(f"{prefix}.model").read_bytes()


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that has a length."""
    size, head = len(content), bytearray([number << 3 | 2])
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + content


def test_models_as_sentencepiece_trains_them_are_read(model: bytes, tmp_path: Path) -> None:
    """With the map of characters that all of them come with."""
    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer(tmp_path)
    assert ours.encode("the ﬁne fox", special=False) == theirs.encode("the ﬁne fox")
    assert ours.backend.size == theirs.get_piece_size()


HOSTILE_MODELS = {
    "trie": field(3, field(2, (1 << 31).to_bytes(4, "little") + b"x" * 60)),
    "growth": field(3, field(2, (4).to_bytes(4, "little") + b"xxxx" + b"y" * 100_000 + b"\0")),
    "growth by little": field(3, field(2, (4).to_bytes(4, "little") + b"xxxx" + b"y" * 65 + b"\0")),
    "growth of what is decoded": field(5, field(2, (4).to_bytes(4, "little") + b"xxxx" + b"y" * 100_000 + b"\0")),
    "piece": field(1, field(1, b"z" * 5000)),
    "a long piece": field(1, field(1, b"z" * 510)),
    "number": b"\x1a" + b"\xff" * 12,
    "half": b"\x0a",
}


@pytest.mark.parametrize("kind", HOSTILE_MODELS)
def test_models_whose_parts_are_too_large(kind: str, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model + HOSTILE_MODELS[kind])
    why = {
        "trie": "is said to have 2,147,483,648",
        "growth": "becomes 100,000 bytes",
        "growth by little": "becomes 65 bytes",
        "a long piece": "a piece of 513 bytes",
        "piece": "a piece of 5,003 bytes",
    }
    with pytest.raises(ValueError, match=rf"tokenizer\.model: not a SentencePiece model.*{why.get(kind, '')}"):
        Tokenizer(tmp_path)


def test_a_model_of_a_size_that_none_has(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    monkeypatch.setattr(spm, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than the 100"):
        Tokenizer(tmp_path)


def test_more_added_tokens_than_a_text_is_split_at(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    for tokens, said in (
        ({f"<{i}>": 100 + i for i in range(10_001)}, "10,003 added tokens"),
        ({f"{i}{'x' * 50_000}": 100 + i for i in range(9)}, "11 added tokens of 450,0"),
    ):
        (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
        with pytest.raises(ValueError, match=rf"tokenizer\.model: {said}.*more than the 10,000"):
            Tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({f"<{i}>": 100 + i for i in range(9_000)}))
    assert Tokenizer(tmp_path).encode("<8999>", special=False) == [9099]


@pytest.mark.parametrize("value", ["x", 0, 1, 1.0, [], {}])
@pytest.mark.parametrize("key", ["legacy", "add_bos_token"])
def test_settings_that_are_neither_true_nor_false(key: str, value: object, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=f"{key} is .* true or false"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["json", "model"])
@pytest.mark.parametrize(
    "token",
    [
        {"": 5},
        {"x": "٥"},
        {"x": True},
        {"x": 1.0},
        {"x": -1},
        {"x": 2**31},
    ],
)
def test_added_tokens_without_a_text_or_an_id(kind: str, token: dict, model: bytes, tmp_path: Path) -> None:
    if kind == "json":
        shutil.copy(DEMO / "tokenizer.json", tmp_path)
    else:
        (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "added_tokens.json").write_text(json.dumps(token))
    with pytest.raises(ValueError, match="expected a text and a number"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"٥٠": {"content": "x"}}, "expected a text and a number"),
        ({"900": {"content": ""}}, "expected a text and a number"),
        ({"900": {"content": "x", "special": "yes"}}, "true or false"),
        ([1], "expected a text and a number"),
    ],
)
def test_added_tokens_of_the_config_that_are_none(decoder: object, message: str, tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"60": {"content": "x"}, "61": {"content": "x"}}, "has the ids 60 and 61"),
        ({"60": {"content": "x"}, "060": {"content": "y"}}, "the id 60 is that of two added tokens"),
    ],
)
def test_added_tokens_that_contradict(decoder: object, message: str, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)
