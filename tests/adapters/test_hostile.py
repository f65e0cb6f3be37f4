"""Folders that are no adapter of the model: each is refused in one line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import generate
from tests.adapters.test_peft import BOTH
from tests.helpers import adapters, tiny

Q = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and an adapter in `adapter`."""
    adapters.made(tmp_path, "llama", target_modules=["q_proj", "down_proj"])
    return tmp_path


def edit(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Write the tensors of an adapter anew."""
    path = folder / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def configure(folder: Path, **values: Any) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        minillm.load(folder, device="cpu", kernels="reference", adapter=folder / "adapter")
    assert "\n" not in str(caught.value)


TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "half a pair": (
        lambda t: t.pop(f"{Q}.lora_B.weight"),
        "1 tensors lack the other half of their pair, such as .*q_proj",
    ),
    "another module": (
        lambda t: t.update({f"{Q[:-6]}x_proj.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}),
        "no module of the model is meant by 1 names: model.layers.0.self_attn.x_proj",
    ),
    "a layer too many": (
        lambda t: t.update({f"{Q.replace('.0.', '.7.')}.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}),
        "no module of the model is meant by 1 names: model.layers.7",
    ),
    "a tensor too many": (lambda t: t.update(extra=torch.ones(2)), "meant by 1 names: extra"),
    "another rank": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(5, 48)}),
        r"1 tensors of another shape: .*q_proj.lora_A.weight is \[5, 48\], expected \[4, 48\]; r, rank_pattern or",
    ),
    "another width": (
        lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(47, 4)}),
        r"lora_B.weight is \[47, 4\], expected \[48, 4\]",
    ),
    "no dimension": (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(())}), r"lora_A.weight is \[\], expected"),
    "not a number": (
        lambda t: t[f"{Q}.lora_A.weight"].fill_(torch.nan),
        "lora_A.weight: values that are not finite",
    ),
    "infinite": (lambda t: t[f"{Q}.lora_B.weight"].fill_(torch.inf), "values that are not finite"),
    "whole numbers": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 48, dtype=torch.int32)}),
        "q_proj.lora_A.weight: of type I32; an adapter's tensors are plain numbers",
    ),
    "magnitudes without DoRA": (
        lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(48)}),
        "use_dora is False, its tensors say otherwise",
    ),
}


@pytest.mark.parametrize("name", list(TENSORS))
def test_tensors(name: str, folder: Path) -> None:
    change, message = TENSORS[name]
    edit(folder, change)
    refused(folder, message)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    *(({"peft_type": kind}, f"peft_type is '{kind}'; only LORA adapters are read") for kind in (
        "LOHA", "ADALORA", "IA3", "PREFIX_TUNING", "OFT", "VERA")),
    ({"peft_type": None}, "peft_type is None"),
    *(({"init_lora_weights": way}, f"init_lora_weights is '{way}', which changes the base model's weights") for way in (
        "pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is .*, which is not computed here"),
    ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is"),
    ({"use_dora": True}, "use_dora is True, its tensors say otherwise"),
    ({"r": 0}, "r is 0, it must be a whole number from 1"),
    ({"r": True}, "r is True"),
    ({"r": 10**9}, "r is 1000000000"),
    ({"lora_alpha": "8"}, "lora_alpha is '8', it must be a number"),
    ({"lora_dropout": 2}, "lora_dropout is 2"),
    ({"bias": "some"}, "bias is 'some'; use none, lora_only or all"),
    ({"rank_pattern": {"(": 2}}, r"rank_pattern has '\(', which is no regular expression"),
    ({"rank_pattern": {"q_proj": -1}}, "rank_pattern gives .*q_proj -1"),
    ({"rank_pattern": [1]}, "adapter_config.json"),
    *(({key: pattern if key == "exclude_modules" else [pattern]}, f"{key} has .*, which could take for ever to match")
      for key in ("exclude_modules", "modules_to_save", "layers_pattern") for pattern in ("(a+)+x", ".*" * 4)),
    *(({key: {"q_proj": 4, pattern: 4}}, f"{key} has .*, which could take for ever to match")
      for key in ("rank_pattern", "alpha_pattern") for pattern in ("(.|.)*x", "(?:a?){3,9}", "(_?" * 30 + ")" * 30)),
    ({"rank_pattern": {f"(.*){i}(.*)": 4 for i in range(200)}}, "rank_pattern has .*, which could take for ever"),
    ({"alpha_pattern": {"x" * 3000: 4}}, "alpha_pattern has .*; a pattern is a text of at most 2000 characters"),
    ({"layers_pattern": [3]}, "layers_pattern has 3; a pattern is a text"),
    ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern gives .*q_proj 'x'; it must be a number"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), CONFIGS)
def test_configs(values: dict[str, Any], message: str, folder: Path) -> None:
    configure(folder, **values)
    refused(folder, message)


def test_an_unknown_key_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, of_the_future={"x": 1}, of_the_future_and_off=None)
    minillm.load(folder, device="cpu", kernels="reference", adapter=folder / "adapter")
    assert "keys not understood and ignored: of_the_future\n" in capsys.readouterr().err


def test_what_lacks_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, lambda tensors: [tensors.pop(f"{Q}.lora_{half}.weight") for half in "AB"])
    minillm.load(folder, device="cpu", kernels="reference", adapter=folder / "adapter")
    assert "no tensors for 1 of its target_modules: model.layers.0.self_attn.q_proj\n" in capsys.readouterr().err
    edit(folder, dict.clear)
    refused(folder, "there are no tensors in it")


def test_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No pickle is opened, and the command says it in one line too."""
    (folder / "adapter/adapter_model.safetensors").unlink()
    refused(folder, "no adapter_model.safetensors")
    (folder / "adapter/adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    refused(folder, "adapter_model.bin is a pickle, which is not read")
    capsys.readouterr()
    code = generate.main(["--weights", str(folder), "--adapter", str(folder / "adapter"), "--prompt", "a"])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    (folder / "adapter/adapter_config.json").write_text("{")
    refused(folder, "adapter_config.json")
    (folder / "adapter/adapter_config.json").unlink()
    refused(folder, "no adapter_config.json; give the folder of a PEFT adapter")


def test_which_experts_is_told_or_refused(tmp_path: Path) -> None:
    """Of one fused parameter only the config, or the width of A, says which it is."""
    row = ("qwen3_moe", {**tiny.ROWS["qwen3_moe"][1], "moe_intermediate_size": 48})
    tiny.ROWS["square"] = row
    try:
        adapters.made(tmp_path, "square", target_modules=["q_proj"], target_parameters=BOTH[1:])
    finally:
        del tiny.ROWS["square"]
    configure(tmp_path, target_parameters=None)
    refused(tmp_path, "nothing tells which of gate_up_proj and down_proj it is for")
    configure(tmp_path, target_parameters=BOTH[1:], peft_version=None)
    refused(tmp_path, "depends on peft_version; state it")
