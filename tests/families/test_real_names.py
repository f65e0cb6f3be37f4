"""Published configs and tensor indexes: every tensor is claimed, every parameter filled, every count as published."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from minillm.config import is_readable, read
from minillm.families import FAMILIES, resolve
from minillm.families.refused import REASONS
from minillm.loading import load
from minillm.model.decoder import skeleton
from minillm.report.examine import explain
from minillm.weights import formats
from minillm.weights.checkpoint import TensorInfo
from minillm.weights.formats import fp8_blocks
from minillm.weights.load import misshapen
from minillm.weights.rules import plan
from tests.conftest import SHARED, shared

# What the model cards and papers state, exact where they give the exact number.
COUNTS = {
    "Qwen__Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen__Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen__Qwen2.5-72B": 72_706_203_648,
    "Qwen__Qwen2.5-Coder-32B-Instruct": 32_763_876_352,
    "Qwen__Qwen2-VL-2B-Instruct-AWQ": 1_543_714_304,  # here and below without the part that reads images
    "Qwen__Qwen2-VL-7B-Instruct": 7_615_616_512,
    "Qwen__Qwen3-VL": 4_022_468_096,
    "Qwen__Qwen3-VL-4B-Instruct": 4_022_468_096,
    "Qwen__Qwen3-VL-8B-Instruct": 8_190_735_360,
    "Qwen__Qwen3-VL-32B-Instruct": 32_762_123_264,
    "Qwen__Qwen3-VL-30B-A3B-Instruct": 30_532_122_624,
    "Qwen__Qwen3-VL-235B-A22B-Instruct": 235_093_634_560,
    "moonshotai__Kimi-K2.5": 1_026_408_232_448,
    "nvidia__Kimi-K2.5-NVFP4": 1_026_408_232_448,
    "nvidia__Kimi-K2.7-Code-NVFP4": 1_026_408_232_448,
    "Qwen__Qwen-7B-Chat": 7_721_324_544,
    "THUDM__glm-4-9b-chat": 9_399_951_360,
    "XiaomiMiMo__MiMo-7B-Base": 7_622_619_136,
    "zai-org__GLM-4.7-Flash": 29_943_393_920,
    "zai-org__GLM-4.7-FP8": 352_796_486_560,  # of a copy that does not say that q and k are normalised
    "MiniMaxAI__MiniMax-M2.5": 228_689_764_864,
    "nvidia__MiniMax-M2.5-NVFP4": 228_689_764_864,
    "LiquidAI__LFM2-1.2B": 1_170_340_608,
    "nvidia__Nemotron-3-Nano": 31_577_940_288,
    "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
    "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": 31_577_940_288,
    "nvidia__NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": 31_577_940_288,
    "nvidia__NVIDIA-Nemotron-3-Super-120B-A12B-FP8": 120_668_707_840,
    "nvidia__NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": 120_668_707_840,
    "nvidia__NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8": 549_308_993_536,
    "nvidia__NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4": 549_308_993_536,
    "deepseek-ai__DeepSeek-V4-Flash": 284_334_567_511,  # 284 G and, below, 1.6 T; the tables of tokens included
    "nvidia__DeepSeek-V4-Flash-NVFP4": 284_334_567_511,
    "nvidia__DeepSeek-V4-Pro-NVFP4": 1_572_999_528_803,
    "XiaomiMiMo__MiMo-V2-Flash": 308_778_780_864,  # here and below without what predicts several tokens
    "poolside__Laguna-XS.2-FP8": 33_442_617_088,
    "MiniMaxAI__MiniMax-M3": 426_174_572_928,
    "nvidia__MiniMax-M3-NVFP4": 426_174_572_928,
    "nvidia__DeepSeek-V3.2-NVFP4": 671_877_944_064,
    "nvidia__GLM-5-NVFP4": 743_911_218_432,
    "nvidia__GLM-5.1-NVFP4": 743_911_218_432,
    "nvidia__GLM-5.2-NVFP4": 743_377_019_904,  # whose layers share choices: 21 of 78 have an indexer
    "nvidia__GLM-5.3-NVFP4": 743_377_019_904,
    "zai-org__GLM-5": 743_911_218_432,
    "zai-org__GLM-5-FP8": 743_911_218_432,
    "zai-org__GLM-5.1": 743_911_218_432,
    "zai-org__GLM-5.1-FP8": 743_911_218_432,
    "zai-org__GLM-5.2-FP8": 743_377_019_904,
    "zai-org__GLM-5.3": 743_377_019_904,
    "openbmb__MiniCPM4-8B": 8_185_253_888,
    "openbmb__MiniCPM3-4B": 4_073_875_968,
    "baichuan-inc__Baichuan2-7B": 7_505_973_248,
    "nvidia__Llama-3_3-Nemotron-Super-49B-v1": 49_867_145_216,
    "stepfun-ai__Step-3.7-Flash": 195_844_508_736,  # of a copy that does not say how many heads windows have
    "meta-models__Muse-Glimmer-30B": 27_854_780_928,  # and without the part that reads images, as of the next one
    "meta-llama__Llama-4-Scout-17B-16E-Instruct": 107_769_861_120,
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
    "mistralai__Mixtral-8x7B-v0.1": 46_702_792_704,
    "TheBloke__Mixtral-8x7B-Instruct-v0.1-GPTQ": 46_702_792_704,
    "mistralai__Mixtral-8x22B-v0.1": 140_620_634_112,
    "alpindale__WizardLM-2-8x22B": 140_620_634_112,
    "llm-jp__8x1.8b-mixtral-exp": 9_266_759_680,
    "Qwen__Qwen2-Audio-7B-Instruct": 7_754_878_976,  # and 642,256,896 that hear, less 40,960 that no file has
    "Qwen__Qwen3-30B-A3B": 30_532_122_624,
    "Qwen__Qwen3-30B-A3B-FP8": 30_532_122_624,
    "Qwen__Qwen3-235B-A22B": 235_093_634_560,
    "Qwen__Qwen3-Next-80B-A3B-Thinking": 79_674_391_296,  # here and below without layers that predict several tokens
    "Qwen__Qwen3.5-0.8B": 752_393_024,  # and without the part that reads images
    "Qwen__Qwen3.5-35B-A3B": 34_660_610_688,
    "Qwen__Qwen3.5-397B-A17B": 396_346_350_336,
    "Qwen__Qwen3.8-2.4T-A95B": 2_419_804_697_984,
    "Qwen__Qwen3.8-2.4T-A95B-FP8": 2_419_804_697_984,
    "nvidia__Qwen3.5-397B-A17B-NVFP4": 396_346_350_336,
    "nvidia__Qwen3.6-35B-A3B-NVFP4": 34_660_610_688,
    "deepseek-ai__DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-ai__DeepSeek-V2": 235_741_434_880,
    "deepseek-ai__DeepSeek-V3": 671_026_419_200,
    "deepseek-ai__DeepSeek-R1": 671_026_419_200,
    "moonshotai__Kimi-K2-Thinking": 1_026_408_232_448,
    "microsoft__Phi-tiny-MoE-instruct": 3_755_220_288,
    "openai__gpt-oss-20b": 20_914_757_184,
    "google__gemma-2b": 2_506_172_416,
    "google__gemma-2-2b-it": 2_614_341_888,
    "google__gemma-3-4b-it": 3_880_263_168,
    "google__gemma-3-27b-it": 27_009_346_304,
    "google__gemma-4-E2B-it": 4_628_569_379,  # here and below without what images and sound go through
    "google__gemma-4-26B-A4B": 25_233_141_790,
    "nvidia__Gemma-4-26B-A4B-NVFP4": 25_233_141_790,
    "microsoft__Phi-3-mini-128k-instruct": 3_821_079_552,
    "microsoft__Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft__Phi-4-mini-instruct": 3_836_021_760,
    "microsoft__phi-4": 14_659_507_200,
    "allenai__Olmo-3.1-32B-Instruct": 32_233_522_176,
    "HuggingFaceTB__SmolLM3-3B": 3_075_098_624,
    "ibm-granite__granite-3.1-1b-a400m-instruct": 1_334_628_352,
    "openai-community__gpt2": 124_439_808,
    "bigscience__bloom": 176_247_271_424,
    "WizardLM__WizardCoder-15B-V1.0": 15_517_462_528,
    "tiiuae__falcon-180B-chat": 178_557_088_768,  # without the copy of its head
}
# What their authors call active per token, in billions, to as many digits as they give.
ACTIVE = {
    "mistralai__Mixtral-8x7B-v0.1": "12.9",
    "mistralai__Mixtral-8x22B-v0.1": "39",
    "Qwen__Qwen3-30B-A3B": "3.3",
    "Qwen__Qwen3-235B-A22B": "22",
    "deepseek-ai__DeepSeek-V2": "21",
    "deepseek-ai__DeepSeek-V3": "37",
    "moonshotai__Kimi-K2-Thinking": "32",
    "Qwen__Qwen3-VL-235B-A22B-Instruct": "22",
    "Qwen__Qwen3-VL-30B-A3B-Instruct": "3.3",
    "Qwen__Qwen3-Next-80B-A3B-Thinking": "3",
    "Qwen__Qwen3.5-397B-A17B": "17",
    "Qwen__Qwen3.8-2.4T-A95B": "95",
    "google__gemma-4-26B-A4B": "3.8",
    "XiaomiMiMo__MiMo-V2-Flash": "15",
    "poolside__Laguna-XS.2-FP8": "3",
    "meta-llama__Llama-4-Scout-17B-16E-Instruct": "17",
    "ibm-granite__granite-3.1-1b-a400m-instruct": "0.4",
}
FOLDERS = sorted(path.parent for path in SHARED.glob("real-configs/*/config.json"))
KNOWN = [folder for folder in FOLDERS if read(folder).get("model_type") in FAMILIES]
# But not what a class of transformers says where nothing is stated (`test_parity.py` has that).
SUPPORTED = [each for each in KNOWN if not each.name.startswith("transformers-")]


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
    mixture = any(layer["ffn"] and layer["ffn"]["kind"] == "MoE" for layer in report["spec"]["layers"])
    spec = report["spec"]
    looked_up = spec["per_layer"] is not None or spec["embedding"]["positions"] is not None  # a row of a table
    assert (report["active_parameter_count"] < COUNTS[name]) == (mixture or looked_up)
    indexed = (folder / "model.safetensors.index.json").exists()
    if report["quantization"] and not is_readable(read(folder)):
        with pytest.raises(ValueError, match=f"quantised with {report['quantization']}"):
            load(folder)
    elif indexed:
        assert report["unclaimed_tensors"] == []
        assert report["unfilled_parameters"] == []
    else:
        assert report["unclaimed_tensors"] is None


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name: str) -> None:
    """The published figure, where rounding down is what its authors may have done."""
    billions = explain(shared(f"real-configs/{name}"))["active_parameter_count"] / 1e9
    digit = 10.0 ** -len(ACTIVE[name].partition(".")[2])
    assert -digit / 2 <= billions - float(ACTIVE[name]) < digit


def test_active_parameters_without_the_embedding() -> None:
    """As OpenAI's model card counts them: 3.61B for gpt-oss-20b."""
    report = explain(shared("real-configs/openai__gpt-oss-20b"))
    embedding = report["spec"]["vocab_size"] * report["spec"]["hidden_size"]
    assert round((report["active_parameter_count"] - embedding) / 1e9, 2) == 3.61


def test_published_tensor_list() -> None:
    """All 92,000 tensors of DeepSeek-V3 by name, type and shape: fp8 with its factors, one extra layer left out."""
    folder = shared("real-configs/deepseek-ai__DeepSeek-V3")
    lines = (folder / "RECONSTRUCTED_tensor_names.tsv").read_text().splitlines()[1:]
    info = {}
    for name, dtype, shape in (line.split("\t") for line in lines):
        info[name] = TensorInfo("", tuple(json.loads(shape)), dtype)
    spec, rules, _ = resolve(read(folder))
    matrices = formats.gathered(info, read(folder)["quantization_config"])
    factors = {matrices[name].parts[fp8_blocks.SCALE] for name in matrices}
    info = {name: each for name, each in info.items() if name not in factors}
    planned = plan(info, rules, skeleton(spec, torch.bfloat16).destinations())
    assert planned.unclaimed == planned.unfilled == planned.twice_filled == misshapen(planned, info) == []
    assert all(name.startswith("model.layers.61.") for name in planned.dropped)
    assert set(planned.reasons.values()) == {len(planned.dropped)}
    quantised = {name for name in planned.assignments if info[name].dtype == "F8_E4M3"}
    assert quantised == matrices.keys() & planned.assignments.keys()
    assert len(planned.assignments) + len(planned.dropped) == len(info)


def test_indexes_were_there() -> None:
    """Guards the branch above: these folders of plain checkpoints have an index."""
    shared("real-configs")
    indexed = [f.name for f in SUPPORTED if (f / "model.safetensors.index.json").exists()]
    assert len(indexed) >= 8


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f not in KNOWN], ids=lambda folder: folder.name)
def test_other_models_are_refused_by_name(folder: Path) -> None:
    values = read(folder)
    stated = values.get("model_type")  # one published config has none
    words = f"model_type '{stated}' is not supported: {re.escape(REASONS[stated])}$" if stated else "model_type None"
    with pytest.raises(ValueError, match=words):
        resolve(values)
