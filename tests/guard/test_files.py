"""Files by strangers: what is read of them, and what is refused before it is."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import generate
from minillm.guard import files, jsonfile
from minillm.guard.parsing import reading
from tests.conftest import exit_code

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**200), 10**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda each: st.lists(each) | st.dictionaries(texts, each),
)
NO_JSON = {
    "a key twice": ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' stands there twice"),
    "not a number": ('{"a": NaN}', "NaN is no number"),
    "infinity": ('{"a": Infinity}', "Infinity is no number"),
    "infinity beside where it may be": (
        '{"time_step_limit": [0.0, Infinity], "b": [Infinity]}',
        "Infinity is no number",
    ),
    "minus infinity": ('{"time_step_limit": -Infinity}', "-Infinity is no number"),
    "beyond a float": ('{"a": 1e999}', "the number 1e999, which no float holds"),
    "a long number": (f'{{"a": {"9" * 400}}}', "a number of 400 digits"),
    "a longer number": (f'{{"a": {"9" * 10**6}}}', "a number of 1000000 digits"),
    "half a pair": ('{"a": ["\\ud800"]}', "surrogates not allowed"),
    "half a pair as a key": ('{"\\uDC00": 1}', "surrogates not allowed"),
    "depth": ("[" * 10**5 + "]" * 10**5, "nested too deeply"),
    "as deep as Python's parser goes": ("[" * 900 + "]" * 900, "nested too deeply"),
    "values": ("[" + "[]," * 10**6 + "1]", "2,000,001 values, more than the 2,000,000"),
    "cut off": ('{"a": ', "Expecting value"),
    "nothing": ("", "Expecting value"),
    "two": ("{} {}", "Extra data"),
    "blanks of other scripts": ("\u00a0{}", "Expecting value"),
}


@given(values)
def test_json_is_read_as_python_reads_it(value: object) -> None:
    assert jsonfile.parsed(json.dumps(value), "here") == value
    assert jsonfile.parsed(json.dumps(value, ensure_ascii=False, indent=1), "here") == value


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_refused(name: str) -> None:
    text, message = NO_JSON[name]
    with pytest.raises(ValueError, match=r"^here: ") as caught:
        jsonfile.parsed(text, "here")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_depth_that_files_have() -> None:
    text = "[" * 99 + '{"a": [1]}' + "]" * 99
    with pytest.raises(ValueError, match="nested too deeply"):
        jsonfile.parsed(text, "here")
    assert jsonfile.parsed(text[3:-3], "here")


def test_where_published_files_say_infinity() -> None:
    assert jsonfile.parsed('{"time_step_limit": [0.0, Infinity]}', "here") == {"time_step_limit": [0.0, float("inf")]}


def test_an_emoji_in_halves_is_whole() -> None:
    assert jsonfile.parsed('{"a": "\\ud83d\\ude00"}', "here") == {"a": "\U0001f600"}


def test_a_file_has_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert jsonfile.read_json(path) == {"a": 1}
    path.write_bytes(b'\xef\xbb\xbf{"a": 2}')
    assert jsonfile.read_json(path) == {"a": 2}
    with pytest.raises(ValueError, match="11 bytes, more than the 10"):
        jsonfile.read_json(path, limit=10)
    path.write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(ValueError, match="not UTF-8"):
        jsonfile.read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, found list"):
        jsonfile.read_json(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (("/dev/zero", "a device"), (tmp_path, "a folder"), (tmp_path / "pipe", "a pipe")):
        for look in (files.is_there, files.read_text):
            with pytest.raises(ValueError, match=f"{kind}, expected a file"):
                look(Path(path))
    assert not files.is_there(tmp_path / "none")
    assert not files.is_there(tmp_path / "pipe" / "inside")
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="a device, expected a file"):
        files.read_text(tmp_path / "link", pipe=True)


def test_a_file_of_the_kernel_is_read_as_far_as_it_says(tmp_path: Path) -> None:
    """/proc/kmsg says 0 bytes and waits for ever."""
    assert files.read_bytes(Path("/proc/self/status")) == b""


@pytest.mark.parametrize("size", [5, 20])
def test_a_pipe_where_one_may_be(size: int, tmp_path: Path) -> None:
    """As a shell's <(command) is."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("x" * size), daemon=True)
    writer.start()
    if size == 5:
        assert files.read_text(tmp_path / "pipe", limit=10, pipe=True) == "xxxxx"
    else:
        with pytest.raises(ValueError, match="more than the 10 bytes"):
            files.read_text(tmp_path / "pipe", limit=10, pipe=True)
    writer.join()


def test_a_line_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"one\n" + b"x" * 20)
    with open(tmp_path / "lines", "rb") as stream:
        assert files.read_line(stream, "stdin", 10) == b"one\n"
        with pytest.raises(ValueError, match="stdin: a line of more than 10 bytes"):
            files.read_line(stream, "stdin", 10)


@pytest.mark.parametrize("given", ["/dev/zero", "/dev/full", "/proc"])
def test_a_prompt_that_is_no_file(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(generate.main, ["--prompt-file", given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert given in err


def test_template_variables_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[" * 20_000, '{"a": 1, "a": 2}', '{"a": NaN}', "{}}", "[]"):
        assert exit_code(generate.main, ["--chat", "--template-variables", text]) == 2
        assert "is not a JSON object" in capsys.readouterr().err


class Panic(BaseException):
    """As pyo3_runtime.PanicException is."""


@pytest.mark.parametrize(
    "error", [Panic("at lib.rs:1\nsecond line"), KeyError("x"), ZeroDivisionError(), RecursionError()]
)
def test_whatever_a_parser_raises_is_one_line(error: BaseException) -> None:
    with (
        pytest.raises(ValueError, match=r"^a.json: not readable \(") as caught,
        reading("a.json", "not readable", "leave"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("); leave")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_of_the_parser_stays(error: type[BaseException]) -> None:
    with pytest.raises(error), reading("a.json", "not readable"):
        raise error
