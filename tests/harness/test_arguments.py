"""What `--model_args` and the flags beside it may say of the model."""

from __future__ import annotations

import os

os.environ["HF_DATASETS_OFFLINE"] = "1"  # before anything imports datasets

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.registry import get_model

from minillm.harness import __main__ as harness
from minillm.harness.model import HarnessLM

FAST = {"dtype": "float32", "kernels": "reference"}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    harness.register()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trust_remote_code": True}, "unknown model argument trust_remote_code"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"max_length": 513}, "max_length is 513, this model takes from 2 to 512"),
        ({"max_length": "long"}, "max_length is 'long'"),
        ({"prefix_token_id": 512}, "the vocabulary has 512 tokens"),
        ({"prefix_token_id": "abc"}, "prefix_token_id is 'abc', it must be an id below 512"),
        ({"batch_size": "auto", "max_batch_size": -1}, "max_batch_size is -1, it must be a whole number"),
        ({"batch_size": "auto", "max_batch_size": "abc"}, "max_batch_size is 'abc'"),
        ({"think_end_token": 5}, "think_end_token is 5, it must be a text"),
        ({"add_bos_token": "no"}, "add_bos_token is 'no', it must be True or False"),
        ({"enable_thinking": "off"}, "enable_thinking is 'off'"),
        ({"symmetric": "no", "quantize": "int4"}, "symmetric is 'no'"),
        ({"keep_quantized": 1}, "keep_quantized is 1"),
        ({"device": "abacus"}, "device 'abacus' is unknown"),
        ({"quantize": "int2"}, "int2"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, stories: Path) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessLM(str(stories), **FAST, **arguments)


def test_numbers_and_none_from_the_command(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder 123, of which the harness makes a number; a flag that is none has its default, which is not false."""
    (tmp_path / "123").symlink_to(stories)
    monkeypatch.chdir(tmp_path)
    found = get_model("minillm").create_from_arg_string("weights=123,symmetric=none,keep_quantized=none")
    assert found.llm.spec.vocab_size == 512


@pytest.mark.parametrize("given", ["device=cpu,batch_size=4", {"device": "cpu", "batch_size": 4}])
def test_arguments_that_are_flags_too(given: Any, stories: Path) -> None:
    """They count where the flag has its default, or says the same."""
    make = get_model("minillm")
    for flags in ({"batch_size": 1, "device": "cuda:0"}, {"batch_size": "4", "device": "cpu", "max_batch_size": None}):
        if isinstance(given, str):
            found = make.create_from_arg_string(f"weights={stories},kernels=reference,{given}", flags)
        else:
            found = make.create_from_arg_obj({"weights": str(stories), "kernels": "reference", **given}, flags)
        assert (found.rows, found.device.type) == (4, "cpu")
    flagged = make.create_from_arg_string(f"weights={stories},kernels=reference", {"batch_size": 3, "device": "cpu"})
    assert flagged.rows == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("batch_size=4", "batch_size is 4 in --model_args and 8 in --batch_size; give one"),
        ("device=cuda", "device is 'cuda' in --model_args and 'cpu' in --device; give one"),
        ("self=1", "unknown model argument self"),
    ],
)
def test_arguments_that_contradict_flags(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_model("minillm").create_from_arg_string(given, {"batch_size": 8, "device": "cpu"})
