"""Published configs and tensor indexes: every tensor is claimed, every parameter filled, every count as published."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SHARED, shared

from minillm.config import read
from minillm.explain import explain
from minillm.families import FAMILIES, resolve
from minillm.loading import load

# What the model cards and papers state, exact where they give the exact number.
COUNTS = {
    "Qwen__Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen__Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen__Qwen2.5-72B": 72_706_203_648,
    "Qwen__Qwen2.5-Coder-32B-Instruct": 32_763_876_352,
    "Qwen__Qwen3-0.6B": 596_049_920,
    "Qwen__Qwen3-1.7B": 1_720_574_976,
    "TinyLlama__TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "deepseek-ai__DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "meta-llama__Llama-2-7b-hf": 6_738_415_616,
    "meta-llama__Llama-3.1-405B": 405_853_388_800,
    "meta-llama__Llama-3.1-70B": 70_553_706_496,
    "meta-llama__Llama-3.1-8B": 8_030_261_248,
    "meta-llama__Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama__Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama__Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai__Devstral-Small-2507": 23_572_403_200,
    "mistralai__Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai__Mistral-7B-v0.1": 7_241_732_096,
    "Vezora__Mistral-22B-v0.2": 22_237_845_504,
    "bnb__Llama-3.1-8B-Instruct": 8_030_261_248,
    "neuralmagic__Meta-Llama-3-8B-Instruct-FP8": 8_030_261_248,
    "TheBloke__Llama-2-13B-chat-GPTQ": 13_015_864_320,
}
FOLDERS = sorted(path.parent for path in SHARED.glob("real-configs/*/config.json"))
SUPPORTED = [folder for folder in FOLDERS if read(folder).get("model_type") in FAMILIES]


def test_every_supported_folder_has_a_count() -> None:
    shared("real-configs")
    assert {folder.name for folder in SUPPORTED} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_published_checkpoint(name: str) -> None:
    folder = shared(f"real-configs/{name}")
    report = explain(folder)
    assert report["parameter_count"] == COUNTS[name]
    # One of the copies names code to run, which is never run; the other keys are all understood.
    assert set(report["unknown_config_keys"]) <= {"auto_map"}
    indexed = (folder / "model.safetensors.index.json").exists()
    if report["quantization"]:
        with pytest.raises(ValueError, match=f"quantised with {report['quantization']}"):
            load(folder)
    elif indexed:
        assert report["unclaimed_tensors"] == []
        assert report["unfilled_parameters"] == []
    else:
        assert report["unclaimed_tensors"] is None


def test_indexes_were_there() -> None:
    """Guards the branch above: these folders of plain checkpoints have an index."""
    shared("real-configs")
    indexed = [f.name for f in SUPPORTED if (f / "model.safetensors.index.json").exists()]
    assert len(indexed) >= 8


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f not in SUPPORTED], ids=lambda folder: folder.name)
def test_other_models_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"model_type '{read(folder)['model_type']}' is not supported; supported are"):
        resolve(read(folder))
