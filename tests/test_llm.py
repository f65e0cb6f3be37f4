"""The Python API: what goes in, what comes out, and where it stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.engine import inference, sampling
from minillm.hub import DEMO
from minillm.model.cache import Cache
from tests.helpers import tiny

PROMPTS = ["Once upon a time", "Long ago there was a brave little fox named Pip. Pip lived", "There"]


@pytest.fixture(scope="module")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32")


def test_logits(llm: minillm.LLM) -> None:
    logits = llm.model(torch.tensor([[0, 5, 6], [0, 7, 8]]))
    assert logits.shape == (2, 3, llm.spec.vocab_size)
    assert logits.dtype == torch.float32


def test_one_prompt_gives_one_result_and_a_list_a_list(llm: minillm.LLM) -> None:
    options = {"max_new_tokens": 3}
    ids = llm.tokenizer.encode(PROMPTS[0])
    chat = [{"role": "user", "content": "Tell me a story about a fox named Pip and a drum."}]
    for one, several in (
        ({"prompt": PROMPTS[0]}, {"prompt": PROMPTS}),
        ({"prompt_ids": ids}, {"prompt_ids": [ids, ids[:2]]}),
        ({"messages": chat}, {"messages": [chat, chat]}),
    ):
        single, batch = llm.generate(**one, **options), llm.generate(**several, **options)
        assert isinstance(single, minillm.Result)
        assert isinstance(batch, list)
        assert single.token_ids == batch[0].token_ids
    assert (
        llm.generate(prompt_ids=torch.tensor(ids), **options).token_ids == llm.generate(PROMPTS[0], **options).token_ids
    )


def test_ids_of_other_libraries(llm: minillm.LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[0])
    options = {"max_new_tokens": np.int64(2), "temperature": np.float32(0)}
    expected = llm.generate(prompt_ids=ids, **options).token_ids
    assert llm.generate(prompt_ids=np.array(ids), **options).token_ids == expected
    for rows in ([np.array(ids)] * 2, [torch.tensor(ids)] * 2, [tuple(ids), ids]):
        assert [result.token_ids for result in llm.generate(prompt_ids=rows, **options)] == [expected] * 2


def test_a_batch_gives_what_each_prompt_gives(llm: minillm.LLM) -> None:
    """Rows end at different lengths, by their own stop token."""
    together = llm.generate(PROMPTS, max_new_tokens=220, temperature=0)
    for prompt, result in zip(PROMPTS, together, strict=True):
        alone = llm.generate(prompt, max_new_tokens=220, temperature=0)
        assert (result.token_ids, result.text, result.finish_reason) == (
            alone.token_ids,
            alone.text,
            alone.finish_reason,
        )
    assert len({len(result.token_ids) for result in together}) > 1


@pytest.mark.parametrize("row", ["mistral-window", "qwen2-window", "llama-dynamic-beyond", "qwen3"])
def test_a_batch_of_every_kind_of_cache(row: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, *tiny.ROWS[row])
    llm = minillm.load(tmp_path)
    prompts = [tiny.tokens(97, length, seed=length).tolist() for length in (3, 19, 8)]
    together = llm.generate(prompt_ids=prompts, max_new_tokens=30)
    assert [r.token_ids for r in together] == [llm.generate(prompt_ids=p, max_new_tokens=30).token_ids for p in prompts]


def test_long_prompts_are_prefilled_in_pieces(llm: minillm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny.tokens(700, 200).tolist()
    whole = llm.generate(prompt_ids=ids, max_new_tokens=8, ignore_eos=True).token_ids
    monkeypatch.setattr("minillm.engine.inference.PREFILL_CHUNK", 7)
    assert llm.generate(prompt_ids=ids, max_new_tokens=8, ignore_eos=True).token_ids == whole


@torch.no_grad()
def test_prompts_in_pieces_under_dynamic_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece turns by the length of the whole prompt, as transformers does for a prompt at once."""
    monkeypatch.setattr("minillm.engine.inference.PREFILL_CHUNK", 10)
    theirs = tiny.save(tmp_path, *tiny.ROWS["llama-dynamic-beyond"])
    llm, tokens = minillm.load(tmp_path), tiny.tokens(97, 1, 60)
    cache = Cache(llm.spec, 1, 61, torch.float32)
    last = inference.prefill(llm.model, tokens.tolist(), cache)
    reply = theirs(tokens, use_cache=True)
    assert (last - reply.logits[:, -1]).abs().max() <= 2e-5
    ours = inference.decode(llm.model, [5], cache)
    theirs_next = theirs(torch.tensor([[5]]), past_key_values=reply.past_key_values, use_cache=True).logits[:, -1]
    assert (ours - theirs_next).abs().max() <= 2e-5


@pytest.mark.parametrize("ways", [{}, {"prompt_lookup": 2}, {"deterministic": True}, {"max_batch": 2}])
def test_samples_of_a_prompt_are_what_their_seeds_give_alone(llm: minillm.LLM, ways: dict) -> None:
    """The prompt is read once, for all that have a place when it has been."""
    prompts = ["Once upon a time there was a little", "The dog"]
    options = {"temperature": 1.0, "max_new_tokens": 16}
    found = llm.generate(prompts, n=3, seed=5, **options, **ways)
    alone = [llm.generate(prompt, seed=5 + i, **options) for prompt in prompts for i in range(3)]
    assert [each.token_ids for each in found] == [each.token_ids for each in alone]
    if "max_batch" not in ways:
        assert found[0].timings.prompt_tokens == sum(len(llm.tokenizer.encode(prompt)) for prompt in prompts)
    (one,) = llm.generate(prompts[1], n=1, seed=5, **options)
    assert one.token_ids == alone[3].token_ids


def test_each_sample_has_the_scores_of_its_prompt(llm: minillm.LLM) -> None:
    first, second = llm.generate("The dog and", n=2, temperature=1.0, max_new_tokens=2, prompt_logprobs=1)
    assert first.prompt_scores == second.prompt_scores
    assert [each is None for each in first.prompt_scores] == [True] + [False] * (len(first.prompt_scores) - 1)


def test_the_stream_is_the_text(llm: minillm.LLM) -> None:
    result = llm.generate(PROMPTS[0], max_new_tokens=40)
    pieces = list(llm.stream(PROMPTS[0], max_new_tokens=40))
    assert len(pieces) > 10
    assert "".join(pieces) == result.text == llm.tokenizer.decode(result.token_ids)


def test_it_stops_at_every_id_of_the_list(tmp_path: Path) -> None:
    """Whatever the model would say next is made a stop token, first in a list of two, then as a single id."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    expected = minillm.load().generate(PROMPTS[0], max_new_tokens=12).token_ids
    assert not {2, 999} & set(expected)
    for eos in ([2, expected[5], 999], expected[5]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        llm = minillm.load(folder)
        result = llm.generate(PROMPTS[0], max_new_tokens=12)
        assert result.token_ids == expected[:6]
        assert result.finish_reason == "stop"
        assert result.text == llm.tokenizer.decode(expected[:5])
        assert llm.generate(PROMPTS[0], max_new_tokens=12, ignore_eos=True).token_ids == expected


def test_without_generation_config_the_config_says_where_to_stop(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    (folder / "generation_config.json").unlink()
    assert minillm.load(folder).stop_ids == {1}
    tiny.edit_config(folder, eos_token_id=...)
    assert minillm.load(folder).stop_ids == {1}  # the tokenizer's


def test_defaults_come_from_generation_config(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    stated = {"do_sample": True, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.1, "max_new_tokens": 4}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    llm = minillm.load(folder)
    assert llm.sampling() == sampling.Sampling(temperature=0.7, top_k=5, repetition_penalty=1.1)
    assert llm.sampling(temperature=0, top_k=None).temperature == 0
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    tiny.edit_config(folder, eos_token_id=[1, 7])
    assert minillm.load(folder).stop_ids == {1, 7}
    assert len(llm.generate(PROMPTS[0]).token_ids) == 4
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 7}))
    llm = minillm.load(folder)
    with pytest.raises(ValueError, match=r"generation_config.json: top_p is 7"):
        llm.generate(PROMPTS[0], max_new_tokens=1)
    assert llm.generate(PROMPTS[0], max_new_tokens=1, top_p=0.5).token_ids


@pytest.mark.parametrize("stop", ["named", ["zzz", 30], 12, 25, "zzz"], ids=str)
def test_stop_strings(llm: minillm.LLM, stop: str | int | list[str | int]) -> None:
    """The text ends before the first stop string and streams no part of it. A number stands for the ten characters
    from there on in what the model writes: they span tokens."""
    whole = llm.generate(PROMPTS[0], max_new_tokens=40).text
    stop = [whole[s : s + 10] if isinstance(s, int) else s for s in (stop if isinstance(stop, list) else [stop])]
    cut = min([whole.find(each) for each in stop if each in whole], default=len(whole))
    result = llm.generate(PROMPTS[0], max_new_tokens=40, stop=stop)
    assert result.text == whole[:cut]
    assert "".join(llm.stream(PROMPTS[0], max_new_tokens=40, stop=stop)) == whole[:cut]
    assert result.finish_reason == ("stop" if cut < len(whole) else "length")


def test_the_context_is_the_limit(llm: minillm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    result = llm.generate(prompt_ids=[5] * 500, max_new_tokens=50, ignore_eos=True)
    assert len(result.token_ids) == llm.spec.context - 500
    assert result.finish_reason == "length"
    assert "50 new tokens asked for, the context has room for 12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"prompt": "a", "prompt_ids": [1]}, "exactly one"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [[1], []]}, "prompt is empty"),
        ({"prompt_ids": [768]}, "768 is outside"),
        ({"prompt": "a", "max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"prompt": "a", "temprature": 1}, "unknown option temprature"),
        ({"prompt": "a", "top_k": 2.5}, "top_k is 2.5"),
        ({"prompt": "a", "n": 0}, "n is 0"),
        ({"prompt": "a", "n": True}, "n is True"),
        ({"prompt": ["a", "b"], "guide": object()}, "a guide follows one text, and 2 are asked for"),
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": ["a", None]}, "prompt is None"),
        ({"prompt": "a\udcff"}, "cannot encode"),
        ({"prompt_ids": "123"}, "prompt_ids is 123"),
        ({"prompt_ids": [1.7]}, "prompt_ids is"),
        ({"prompt_ids": [[1], ["2"]]}, "prompt_ids is"),
        ({"prompt_ids": 5}, "prompt_ids is 5"),
        ({"prompt": "a", "stop": 5}, "stop is 5"),
        ({"prompt": "a", "tools": [{}]}, "go with messages"),
        ({"prompt": "a", "template_variables": {"x": 1}}, "go with messages"),
        (
            {"messages": [{"role": "user", "content": "x"}], "template_variables": {"tools": 1}},
            "may not be named tools",
        ),
    ],
)
def test_what_cannot_be_is_refused(llm: minillm.LLM, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(**arguments)


def test_a_list_cannot_be_streamed(llm: minillm.LLM) -> None:
    with pytest.raises(ValueError, match="cannot be streamed"):
        llm.stream(["a", "b"])


def test_ids_need_no_tokenizer(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", {})
    llm = minillm.load(tmp_path)
    result = llm.generate(prompt_ids=[1, 2], max_new_tokens=3)
    assert (len(result.token_ids), result.text) == (3, "")
    for arguments in ({"prompt": "text"}, {"prompt_ids": [1], "stop": "x"}):
        with pytest.raises(ValueError, match=r"no tokenizer.json or tokenizer.model"):
            llm.generate(**arguments, max_new_tokens=3)


def test_empty_text_starts_from_bos(llm: minillm.LLM) -> None:
    assert llm.generate("", max_new_tokens=1).prompt_token_ids == [0]


def test_what_has_no_effect_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 3, "no_repeat_ngram_size": 2}))
    llm = minillm.load(folder)
    assert "keys without effect here: no_repeat_ngram_size, num_beams" in capsys.readouterr().err
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9999]}))
    minillm.load(folder)
    assert "eos_token_id [9999] is outside the vocabulary of 768" in capsys.readouterr().err
    llm.generate(PROMPTS[0], max_new_tokens=1, top_p=0.5, seed=3)
    assert "temperature 0 is greedy: top_p, seed without effect" in capsys.readouterr().err
    llm.generate(PROMPTS[0], max_new_tokens=1, top_p=0.5, seed=3, temperature=0.5)
    assert capsys.readouterr().err == ""


def test_a_penalty_sees_prompt_and_text(llm: minillm.LLM) -> None:
    """With an enormous repetition penalty no token of the prompt or the text comes again."""
    result = llm.generate(PROMPTS[0], max_new_tokens=60, repetition_penalty=100.0, ignore_eos=True)
    assert len({*result.prompt_token_ids, *result.token_ids}) == len(result.prompt_token_ids) + 60


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    named = load_file(folder / "model.safetensors")
    named["model.norm.weight"][3] = float("nan")
    save_file(named, folder / "model.safetensors")
    for temperature in (0, 1.0):
        with pytest.raises(ValueError, match="not finite"):
            minillm.load(folder).generate(PROMPTS[0], temperature=temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": "x"}, "kernels is 'x'"),
        ({"path": ""}, "path of the weights is empty"),
        ({"path": "~nosuchuser/x"}, "nosuchuser"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported"),
        ({"dtype": torch.float64}, "dtype 'float64' is not supported"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"device": "cuda:7"}, "0 GPUs found"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the messages are those of a machine without a GPU")
def test_load_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minillm.load(**options)
