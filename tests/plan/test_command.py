"""The command line of the plan: its JSON, its pictures, model cards, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import config
from minillm.families.shared.licences import ALIASES, TERMS
from minillm.hub import DEMO
from minillm.plan import __main__ as plan
from minillm.plan.card import licence
from minillm.plan.devices import DEVICES
from minillm.report.saving import write_gguf
from tests import test_hub
from tests.conftest import ROOT, exit_code, shared
from tests.test_hub import hub as hub

PNG = b"\x89PNG\r\n\x1a\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    return exit_code(plan.main, [str(each) for each in arguments]), *capsys.readouterr()


def test_json_has_what_the_page_lists(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--gpu", "24GB", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"parameters", "active_parameters", "checkpoint_bytes", "kv_bytes_per_token"} <= found.keys()
    page = (ROOT / "docs/plan.md").read_text()
    for keys in (found, found["checkpoint"], found["fit"], found["speed"], found["flops"], found["licence"]):
        assert [key for key in keys if f"`{key}`" not in page] == []


def test_a_single_config(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--config", stories / "config.json")
    assert code == 0
    assert "computed from config.json" in out
    assert "to the byte what the headers of the files say" in run(capsys, "--weights", stories)[1]


def test_tables(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--table", stories, stories.parent / "stories-gemma2")
    assert (code, out.count("\n")) == (0, 4)
    assert "| stories-gemma2 | 0.25 M | all |" in out
    assert len(json.loads(run(capsys, "--table", stories, "--json")[1])) == 1
    rounded = run(capsys, "--table")[1]
    assert "| 70 B | 140 GB | 70 GB | 35 GB |" in rounded
    assert json.loads(run(capsys, "--table", "--json")[1])[-1]["bytes"]["4"] == 202_500_000_000
    code, out, _ = run(capsys, "--devices")
    assert out.count("\n") == len(DEVICES) + 1
    assert len({len(line) for line in out.splitlines()}) == 1
    assert [each["name"] for each in json.loads(run(capsys, "--devices", "--json")[1])] == list(DEVICES)


def test_pictures(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families = sorted(path.parent for path in stories.parent.glob("*/config.json"))
    for number, source in enumerate((("--table", *families), ("--weights", stories, "--batch", 4))):
        path = tmp_path / f"{number}.png"
        assert run(capsys, *source, "--plot", path)[0] == 0
        assert path.read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 2
    code, _, error = run(capsys, "--table", *[stories] * 8, "--plot", tmp_path / "many.png")
    assert (code, error.count("\n")) == (2, 1)
    assert "7 apart" in error


def test_a_picture_of_odd_names(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: Any
) -> None:
    """A context that has no power of two to mark, glyphs that no font has: drawn, without a word."""
    folder = tmp_path / "\x1b[31m $x \u8a9e\U0001f600\uffff"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({**json.loads((stories / "config.json").read_text()), "max_position_embeddings": 100})
    )
    code, _, error = run(capsys, "--config", folder / "config.json", "--plot", tmp_path / "odd.png")
    assert (code, error, len(recwarn)) == (0, "", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "/nowhere/at/all"], "no such folder"),
        (["--config", "/nowhere.json"], "no such file"),
        (["--context", "0"], "--context is 0, this model takes from 1 to"),
        (["--context", "1000000"], "--context is 1000000, this model takes from 1 to"),
        (["--batch", "0"], "--batch is 0"),
        (["--batch", "-1"], "--batch is -1"),
        (["--gpu", "24GB", "--gpus", "0"], "--gpus is 0"),
        (["--gpus", "2"], "--gpus without --gpu"),
        (["--gpu", "abacus"], "names are RTX 3090"),
        (["--gpu", "24XB"], "neither a memory such as 24GB"),
        (["--quantize", "int3"], "invalid choice"),
        (["--group-size", "32"], "go with --quantize int4"),
        (["--quantize", "fp8", "--asymmetric"], "go with --quantize int4"),
        (["--quantize", "int4", "--group-size", "0"], "group size is 0"),
        (["--devices", "--gpu", "24GB"], "--devices takes --json"),
        (["--devices", "--plot", "x.png"], "--devices names none"),
        (["--table", "--plot", "x.png"], "--table names none"),
        (["--table", "x", "--batch", "0"], "--table takes --json and --plot"),
        (["--table", "x", "--config", "y"], "not allowed with argument"),
        (["--plot", "x.jpg"], "a picture is a .png file"),
        (["--plot", "/nowhere/x.png"], "there is no folder"),
    ],
    ids=" ".join,
)
def test_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = run(capsys, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert said in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "model_type None is not supported"),
        ('{"model_type": "rwkv7"}', "model_type 'rwkv7' is not supported"),
        ('{"model_type": "\\u001b[31mred"}', "is not supported"),
    ],
    ids=str,
)
def test_bad_configs(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(text)
    code, out, error = run(capsys, "--config", tmp_path / "config.json")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert said in error
    assert "\x1b" not in error


def card(folder: Path, text: str | bytes) -> dict[str, Any]:
    (folder / "README.md").write_bytes(text.encode() if isinstance(text, str) else text)
    return licence(folder)


def test_licences(tmp_path: Path) -> None:
    assert card(tmp_path, "---\nlicense: apache-2.0\n---\n# Text")["title"] == "Apache License 2.0"
    found = card(tmp_path, "---\nlicense: other\nlicense_name: qwen\nlicense_link: >-\n  there\ntags: [a]\n---\n")
    assert (found["id"], found["name"], found["link"], found["title"]) == ("other", "qwen", "there", "Qwen License")
    assert any("100 million" in each for each in found["asks"])
    assert card(tmp_path, "---\r\nlicense:\r\n- llama3.1\r\n- mit\r\n---\r\n")["id"] == "llama3.1"
    assert any('"Built with Llama"' in each for each in licence(tmp_path)["asks"])
    broken = card(tmp_path, "---\nlanguage: [en\nother: *nowhere\nlicense: mit\n---\n")  # the rest need not be YAML
    assert (broken["title"], broken["problem"]) == ("MIT licence", None)
    unknown = card(tmp_path, "---\nlicense: my-own\n---\n")
    assert (unknown["id"], unknown["title"]) == ("my-own", None)
    assert "read it" in unknown["problem"]
    assert all(name in TERMS for name in ALIASES.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no front matter"),
        ("# Title\n---\nlicense: mit\n---\n", "no front matter"),
        ("---\nlicense: mit\n", "does not end"),
        ("---\nlanguage: en\n---\n", "states no licence"),
        ("---\nlicense: {a: b}\n---\n", "states no licence"),
        ("---\nlicense: 12\n---\n", "states no licence"),
        ("---\nlicense: !!python/object/apply:os.system [echo]\n---\n", "no YAML"),
        ("---\nlicense: !!timestamp x\n---\n", "a tag"),
        ("---\nlicense: [!!int _]\n---\n", "a tag"),
        ("---\nlicense_name: !!bool maybe\nlicense: mit\n---\n", "a tag"),
        ("---\nlicense: 2001-99-99\n---\n", "states no licence"),  # which is a date by its form
        ("---\nlicense: 0x_\n---\n", "states no licence"),
        ("---\nlicense: mit\nlicense: other\n---\n", "its license twice"),
        ("---\nlicense: &a [x]\nlicense_name: *a\n---\n", "alias"),
        ("---\nlicense: " + "[" * 900 + "\n---\n", "no YAML"),
        ("---\nlicense: " + "x" * 3000 + "\n---\n", "characters about its licence"),
        ("---\n" + "language: en\n" * 100_000 + "license: mit\n---\n", "does not end"),
        (b"---\nlicense: \xff\xfe\x00\n---\n", "no YAML"),
        (b"\x00" * 100, "no front matter"),
    ],
    ids=lambda each: repr(each)[:24],
)
def test_hostile_cards(text: str | bytes, said: str, tmp_path: Path) -> None:
    found = card(tmp_path, text)
    assert said in found["problem"]
    assert (found["title"], found["asks"]) == (None, [])


TAGS = [f"!!{name} " for name in ("int", "float", "bool", "timestamp", "omap", "binary")]
MARKS = ["<<: ", "? ", "- ", ": ", "&a ", "*a", "\n ", "\n", "2001-99-99", "mit", "\x00", *"![{}]|>'\"#%@,0_.:"]


@given(st.lists(st.sampled_from(TAGS + MARKS), max_size=8).map("".join))
def test_any_card(text: str) -> None:
    """Parsers of YAML fail in many ways; a licence has one line of text all the same, or none."""
    with tempfile.TemporaryDirectory() as folder:
        found = card(Path(folder), f"---\nlicense: {text}\n---\n")
    assert found["problem"] is None or isinstance(found["problem"], str)
    assert found["id"] is None or isinstance(found["id"], str)


@pytest.mark.parametrize("kind", ["a folder", "a pipe"])
def test_a_card_that_is_no_file(kind: str, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(stories / "config.json", tmp_path)
    (os.mkfifo if kind == "a pipe" else os.mkdir)(tmp_path / "README.md")
    code, out, error = run(capsys, "--weights", tmp_path)
    assert (code, out) == (2, "")
    assert error == f"minillm: error: {tmp_path}/README.md: {kind}, expected a file; remove it\n"


def test_no_card_and_a_card_that_steers(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(stories / "config.json", tmp_path)
    assert "unknown: there is no model card" in run(capsys, "--weights", tmp_path)[1]
    card(tmp_path, '---\nlicense: other\nlicense_name: "\\e[31mred"\n---\n')
    code, out, _ = run(capsys, "--weights", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out


def test_a_download_brings_config_and_card_only(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_hub.FILES, "README.md", b"---\nlicense: mit\n---\n")
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    done = test_hub.run(tmp_path, endpoint, "minillm.plan", "--weights", test_hub.REPO)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["licence"]["title"] == "MIT licence"
    assert hub.asked == ["config.json", "README.md"]


def test_a_device_of_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether a shell gives them as one or not."""
    for words in (["24 GB"], ["24", "GB"], ["RTX", "4090"], ["rtx 4090"]):
        code, out, _ = run(capsys, "--gpu", *words)
        assert code == 0
        assert "yes: " in out


def test_a_file_that_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its headers say its size, and nothing is said of a folder that is not there."""
    path = tmp_path / "model.gguf"
    write_gguf(path, DEMO, config.read(DEMO), "q8_0")
    code, out, err = run(capsys, "--weights", path)
    assert (code, err) == (0, "")
    assert "as the headers of the files say" in out
    assert "not known" not in out
    assert "config.json" not in out


def test_its_size_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((shared("real-configs/meta-llama__Llama-3.1-8B") / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "quip"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    code, out, _ = run(capsys, "--weights", tmp_path, "--gpu", "24GB")
    assert code == 0
    assert "size not known" in out
    assert "how quip lays tensors out is not known" in out
    assert "of weights (bfloat16)" in out
