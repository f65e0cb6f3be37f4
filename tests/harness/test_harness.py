"""The adapter for lm-evaluation-harness against the harness's own backend for transformers: the same requests, the same
answers."""

from __future__ import annotations

import os

os.environ["HF_DATASETS_OFFLINE"] = "1"  # before anything imports datasets

import functools
import json
import math
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import minillm
from minillm import perplexity
from minillm.harness import __main__ as harness
from minillm.harness.model import HarnessLM
from minillm.hub import DEMO
from minillm.text.chat import ChatTemplate
from minillm.text.tokenizer import Tokenizer
from tests.conftest import ROOT, shared
from tests.helpers import harness_tasks, tiny
from tests.helpers.harness_tasks import NEW_TOKENS, STOPS

PER_TOKEN = 5e-6  # nats in fp32; measured: 6e-7
FAST = {"dtype": "float32", "kernels": "reference"}
TASKS = ["choices", "rolling", "continued"]


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    harness.register()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    llm = minillm.load(stories, dtype="float32", kernels="reference")

    def continuation(prompt: str) -> str:
        result = llm.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0, stop=STOPS)
        assert isinstance(result, minillm.Result)
        return result.text

    harness_tasks.write(folder, shared("checkpoints/eval.txt").read_text(), continuation)
    return folder


@pytest.fixture(scope="module")
def adapter(stories: Path) -> HarnessLM:
    return HarnessLM(str(stories), batch_size=2, max_length=128, **FAST)


def asked(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("stories260K", {"max_length": 96}),
        ("stories-mixtral", {"add_bos_token": False}),
        ("stories-gemma2", {"max_length": 128, "prefix_token_id": 2}),
    ],
)
def test_the_answers_are_those_of_transformers(name: str, arguments: dict[str, Any], tasks: Path) -> None:
    """Contexts that are cut, texts longer than a window, batches of other sizes; the same answers, hence scores."""
    weights = shared(f"checkpoints/{name}")
    ours = harness_tasks.run(tasks, "minillm", {"weights": str(weights), **FAST, **arguments}, TASKS, batch_size=3)
    given = {"pretrained": str(weights), "dtype": "float32", **arguments}
    theirs = harness_tasks.run(tasks, "hf", given, TASKS, batch_size=4)
    tokenizer, compared = Tokenizer(weights), 0
    for task in ("choices", "rolling"):
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert mine["doc"] == other["doc"]
            for texts, (answer,), (expected,) in zip(mine["arguments"], mine["resps"], other["resps"], strict=True):
                allowed = PER_TOKEN * len(tokenizer.encode(texts[-1]))
                assert logprob(answer) == pytest.approx(logprob(expected), abs=allowed)
                assert task == "rolling" or answer[1] == expected[1]
                compared += 1
    assert compared == 10 * 3 + 4
    written = [[each["resps"] for each in found["samples"]["continued"]] for found in (ours, theirs)]
    assert written[0] == written[1]
    for task, metric in [("choices", "acc"), ("choices", "acc_norm"), ("continued", "exact_match")]:
        assert ours["results"][task][f"{metric},none"] == theirs["results"][task][f"{metric},none"]
    for metric in ("word_perplexity", "bits_per_byte"):
        values = [found["results"]["rolling"][f"{metric},none"] for found in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)  # per word of some 2.5 tokens
    if name == "stories260K":  # which every other target is from
        assert ours["results"]["continued"]["exact_match,none"] == 0.5


def logprob(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, tuple) else answer)


def test_chat_templates(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts through the demo's template, and a last message that is to be gone on with."""
    ours = HarnessLM(str(DEMO), batch_size=4, enable_thinking=False, **FAST)
    theirs = get_model("hf")(pretrained=str(DEMO), dtype="float32", device="cpu", batch_size=4)
    first = [{"role": "user", "content": "a dog"}]
    both = [*first, {"role": "assistant", "content": "Once upon a time  "}]
    for history, generation in [(first, True), (both, False)]:
        expected = theirs.apply_chat_template(list(map(dict, history)), add_generation_prompt=generation)
        assert ours.apply_chat_template(history, add_generation_prompt=generation) == expected
    source = str(ours.chat_template(True))
    assert source == theirs.chat_template(True)
    assert ours.chat_template(False) is None
    options: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    answers = [harness_tasks.run(tasks, each, {}, ["continued"], **options) for each in (ours, theirs)]
    written = [[each["resps"] for each in found["samples"]["continued"]] for found in answers]
    assert written[0] == written[1]
    for trimming, kept in [("", "Once upon a time  "), ("| trim", "Once upon a time")]:
        template = "{{ enable_thinking }}{% for m in messages %}{{ m.content" + trimming + " }}<end>{% endfor %}"
        monkeypatch.setattr(ours.llm.prompts, "_templates", {False: ChatTemplate(template, {})})
        assert ours.apply_chat_template(both, add_generation_prompt=False) == f"Falsea dog<end>{kept}"
    monkeypatch.setattr(ours.llm.prompts, "_templates", {False: ChatTemplate("{{ messages[0].content }}", {})})
    with pytest.raises(ValueError, match="leaves the last message out"):
        ours.apply_chat_template(both, add_generation_prompt=False)
    with pytest.raises(ValueError, match="the conversation is empty"):
        ours.apply_chat_template([], False)
    with pytest.raises(ValueError, match="'rag'"):
        ours.chat_template("rag")


@pytest.mark.parametrize(("rows", "most"), [("auto", None), ("auto:4", 2), (7, 2)])
def test_batches_change_nothing(rows: Any, most: int | None, stories: Path, adapter: HarnessLM) -> None:
    other = HarnessLM(str(stories), batch_size=rows, max_batch_size=most, max_length=128, **FAST)
    assert other.rows == (7 if rows == 7 else most)
    pairs = asked("loglikelihood", *[("Tom saw" * n, " a dog" * (n % 3 + 1)) for n in range(6)])
    texts = asked("loglikelihood_rolling", *[("Lily was happy. " * n,) for n in (1, 20, 4)])
    prompts = asked("generate_until", *[("Once" * n, {"max_gen_toks": 5}) for n in range(5)])
    found, expected = other.loglikelihood(pairs), adapter.loglikelihood(pairs)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [each for each, _ in found] == pytest.approx([each for each, _ in expected], abs=PER_TOKEN * 10)
    totals = [each.loglikelihood_rolling(texts) for each in (other, adapter)]
    assert totals[0] == pytest.approx(totals[1], abs=PER_TOKEN * 200)
    assert other.generate_until(prompts) == adapter.generate_until(prompts)


def test_what_a_task_may_ask_of_generation(adapter: HarnessLM) -> None:
    def answer(**options: Any) -> str:
        return adapter.generate_until(asked("generate_until", ("Once upon a time", options)))[0]

    plain = answer(max_gen_toks=40)
    assert plain == adapter.llm.generate("Once upon a time", max_new_tokens=40, temperature=0).text  # type: ignore[union-attr]
    assert answer(max_gen_toks=40, until=[" girl", ""]) == plain[: plain.index(" girl")]
    drawn = answer(max_gen_toks=40, do_sample=True, temperature=1.0, seed=3)
    assert drawn == answer(max_gen_toks=40, do_sample=True, temperature=1.0, seed=3) != plain
    assert answer(max_gen_toks=40, do_sample=False, temperature=1.0) == plain
    adapter.think_end_token = " girl"
    assert answer(max_gen_toks=40) == plain[plain.rindex(" girl") + 5 :].lstrip()
    adapter.think_end_token = None
    assert answer(max_gen_toks=40, num_beams=1) == plain
    beams = {"max_gen_toks": 1, "num_beams": 2}
    for options, message in [({"max_gen_toks": 128}, "max_gen_toks is 128"), (beams, "no beam search here")]:
        with pytest.raises(ValueError, match=message):
            answer(**options)
    with pytest.raises(ValueError, match="a continuation has"):
        adapter.loglikelihood(asked("loglikelihood", ("a", " dog" * 200)))


def test_cached_answers_are_not_asked_for_again(
    stories: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"use_cache": str(tmp_path / "answers"), "batch_size": 4}
    first = harness_tasks.run(tasks, "minillm", {"weights": str(stories), **FAST}, TASKS, **options)
    monkeypatch.setattr("minillm.harness.model.score", None)
    monkeypatch.setattr("minillm.llm.LLM.generate", None)
    again = harness_tasks.run(tasks, "minillm", {"weights": str(stories), **FAST}, TASKS, **options)
    assert again["results"] == first["results"]


def test_a_bos_that_the_tokenizer_does_not_add(stories: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stories, tmp_path / "copy"))
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**values, "post_processor": None}))
    plain, adding = (HarnessLM(str(folder), **FAST, add_bos_token=each) for each in (None, True))
    ids, bos = plain.tok_encode("Tom saw"), plain.tokenizer.bos_id
    assert bos not in ids
    assert adding.tok_encode("Tom saw") == adding.tok_encode("<s>Tom saw") == [bos, *ids]
    assert adding.tok_encode("Tom saw", add_special_tokens=False) == ids
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="names no BOS"):
        HarnessLM(str(folder), **FAST, add_bos_token=True)


def test_folders_that_name_too_little(stories: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stories, tmp_path / "copy"))
    for name in ("tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    tiny.edit_config(folder, eos_token_id=...)
    with pytest.raises(ValueError, match="name an EOS"):
        HarnessLM(str(folder), **FAST)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        HarnessLM(str(folder), **FAST)


def test_the_command(
    stories: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of lm_eval's own arguments, and its results in its own file; without a GPU its default device is one line."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    quick = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", quick)  # all of the harness's own tasks take 6 s to list
    model = f"weights={stories},dtype=float32,kernels=reference,max_length=96"
    command = ["--model", "minillm", "--model_args", model, "--include_path", str(tasks), "--tasks", "choices"]
    out = tmp_path / "results.json"
    assert harness.main([*command, "--batch_size", "auto", "--output_path", str(out)]) == 0
    captured = capsys.readouterr()
    assert "|choices|" in captured.out
    assert torch.cuda.is_available() or "running on the CPU" in captured.err
    (path,) = tmp_path.glob("results*.json")
    found = harness_tasks.run(tasks, "minillm", {"weights": str(stories), **FAST, "max_length": 96}, ["choices"])
    written = json.loads(path.read_text())
    assert written["results"]["choices"]["acc_norm,none"] == found["results"]["choices"]["acc_norm,none"]
    assert written["config"]["model_dtype"] == "torch.float32"


def test_without_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    assert harness.main(["--tasks", "choices"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "pip install -e '.[eval]' in the clone" in err


def test_the_entry_point_is_the_registered_class() -> None:
    """What newer versions of the harness read from the installed package: group, name and value."""
    declared = (ROOT / "pyproject.toml").read_text().split('[project.entry-points."lm_eval.models"]\n')[1]
    name, value = declared.splitlines()[0].split(" = ")
    assert EntryPoint(name, value.strip('"'), "lm_eval.models").load() is get_model("minillm") is HarnessLM


def test_rolling_perplexity_is_that_of_the_command(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same windows where they fill the text: the harness draws the last one back to full length."""
    text = shared("checkpoints/eval.txt").read_text()[:3000]
    tokenizer = Tokenizer(stories)
    while (len(tokenizer.encode(text)) - 1) % 64:
        text = text[:-1]
    (tmp_path / "text").write_text(text)
    command = ["--weights", str(stories), "--text", str(tmp_path / "text"), "--context", "64", "--stride", "64"]
    assert perplexity.main([*command, "--kernels", "reference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["before"]
    adapter = HarnessLM(str(stories), batch_size=8, max_length=64, add_bos_token=False, **FAST)
    (total,) = adapter.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    assert found["nats"] * found["tokens"] == pytest.approx(-total, abs=PER_TOKEN * found["tokens"])
    assert found["bits_per_byte"] == pytest.approx(-total / math.log(2) / len(text.encode()), rel=1e-6)
