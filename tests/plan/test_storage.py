"""What files hold by their config: to the byte what published indexes, headers and `minillm.quantize` say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm import families
from minillm.config import read
from minillm.families import FAMILIES
from minillm.families.media import is_part
from minillm.media import tower
from minillm.model.decoder import skeleton
from minillm.plan import storage
from minillm.plan.budget import SEES, Question, budget
from minillm.plan.storage import lay_out, names, section_of
from minillm.quantize import quantize
from minillm.report.examine import examine
from minillm.weights import ints
from minillm.weights.source import Source
from minillm.weights.tensorfile import read_header
from tests.conftest import SHARED, shared
from tests.helpers import oracles_wrapped, tiny

INDEX = "model.safetensors.index.json"
FOLDERS = sorted(path.parent for path in SHARED.glob("real-configs/*/config.json"))
KNOWN = [each for each in FOLDERS if read(each).get("model_type") in FAMILIES]
INDEXED = [each.name for each in KNOWN if (each / INDEX).is_file()]
STORIES = sorted(path.parent.name for path in SHARED.glob("checkpoints/*/config.json"))
QUANTISED = [each.name for each in KNOWN if read(each).get("quantization_config")]
# Those that are laid out as another of their family is: a budget takes seconds, as each of their tensors has a name.
AS_ANOTHER = {
    "nvidia__GLM-5.2-NVFP4", "nvidia__GLM-5.3-NVFP4", "nvidia__Kimi-K2.7-Code-NVFP4", "zai-org__GLM-5.1-FP8",
    "zai-org__GLM-5.2-FP8",
}  # fmt: skip
# What some published files hold besides the decoder.
LEFT_OUT = {
    "Qwen__Qwen3-1.7B": {"copy of the tied head": 151936 * 2048 * 2},
    "tiiuae__falcon-180B-chat": {"copy of the tied head": 65024 * 14848 * 2},
    "meta-llama__Llama-2-7b-hf": {"rotary frequencies": 32 * 64 * 4},
    "Qwen__Qwen2-Audio-7B-Instruct": {SEES: 642_215_936 * 2},
}
WITHOUT_INDEX = {
    "meta-llama__Llama-3.1-8B": 16_060_522_496,
    "Qwen__Qwen2.5-0.5B-Instruct": 494_032_768 * 4,  # says float32
    # 4 bits in groups of 128: of 40 layers 4 x 5120 x 5120 and 3 x 5120 x 13824 values, a half byte each and per group
    # 2.5 bytes, per input 4; embedding, head and norms in 16 bits.
    "TheBloke__Llama-2-13B-chat-GPTQ": (40 * (4 * 5120**2 + 3 * 5120 * 13824) * (64 + 2.5) // 128
                                        + 40 * (6 * 5120 + 13824) * 4 + (2 * 32000 * 5120 + 81 * 5120) * 2),
}  # fmt: skip


def of_decoder(header: dict[str, Any]) -> int:
    """Bytes of a file's tensors without those of a tower."""
    return sum(each.nbytes for name, each in header.items() if not is_part(name))


def entries(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of the decoder, as the config has them."""
    found = examine(folder)
    model, section = skeleton(found.spec, torch.bfloat16), section_of(found.values)
    named = names(found.rules, model, found.planned, section)
    return {n: each for some in lay_out(named, model, "BF16", section).values() for n, each in some.items()}


def test_indexes_were_there() -> None:
    shared("real-configs")
    assert len(INDEXED) == 25


@pytest.mark.parametrize("name", INDEXED)
def test_published_index(name: str) -> None:
    """Every tensor by name, and total_size to the byte, the metadata's count of parameters where it has one."""
    folder = shared(f"real-configs/{name}")
    report = budget(folder, Question())
    made, index = report["checkpoint"], json.loads((folder / INDEX).read_text())
    assert made["source"] == "index"
    assert made["stated_bytes"] == index["metadata"]["total_size"] == report["checkpoint_bytes"]
    assert (made["difference_bytes"], made["outside"], made["absent_tensors"]) == (0, None, 0)
    assert made["left_out"] == LEFT_OUT.get(name, {})
    assert report["parameters"] == index["metadata"].get("total_parameters", report["parameters"])


def test_quantised_folders_were_there() -> None:
    shared("real-configs")
    assert len(QUANTISED) >= 21


UNKNOWN_LAYOUT = {
    f"nvidia__{name}-NVFP4" for name in ("MiniMax-M3", "Qwen3.6-35B-A3B", "DeepSeek-V4-Flash", "DeepSeek-V4-Pro")
}


@pytest.mark.parametrize("name", sorted({*QUANTISED} - AS_ANOTHER))
def test_quantised_folders_are_read_and_have_a_size(name: str) -> None:
    """All but those that have some layers in FP8 and others in NVFP4."""
    made = budget(shared(f"real-configs/{name}"), Question())["checkpoint"]
    assert made["readable"]
    assert (made["bytes"] is None) == (name in UNKNOWN_LAYOUT)


@pytest.mark.parametrize("name", INDEXED)
def test_from_the_config_alone(name: str, tmp_path: Path) -> None:
    """The decoder's bytes need no index."""
    folder = shared(f"real-configs/{name}")
    shutil.copy(folder / "config.json", tmp_path)
    made, index = budget(tmp_path, Question())["checkpoint"], json.loads((folder / INDEX).read_text())
    assert made["source"] == "config"
    beside = sum(size for why, size in LEFT_OUT.get(name, {}).items() if why != SEES)  # which a config does tell
    assert made["bytes"] + beside == index["metadata"]["total_size"]


@pytest.mark.parametrize("name", WITHOUT_INDEX)
def test_without_an_index(name: str) -> None:
    assert budget(shared(f"real-configs/{name}"), Question())["checkpoint_bytes"] == WITHOUT_INDEX[name]


def test_fp8_with_prediction_layers(tmp_path: Path) -> None:
    """All 92,000 tensors of DeepSeek-V3 with type and shape, and its extra layer in bytes; by an index too."""
    folder = shared("real-configs/deepseek-ai__DeepSeek-V3")
    lines = (folder / "RECONSTRUCTED_tensor_names.tsv").read_text().splitlines()[1:]
    listed = {name: (dtype, tuple(json.loads(shape))) for name, dtype, shape in (line.split("\t") for line in lines)}
    extra = {name: each for name, each in listed.items() if name.startswith("model.layers.61.")}
    assert entries(folder) == {name: each for name, each in listed.items() if name not in extra}
    index = {"metadata": {"total_size": storage.nbytes(listed)}, "weight_map": dict.fromkeys(listed, "one")}
    (tmp_path / INDEX).write_text(json.dumps(index))
    shutil.copy(folder / "config.json", tmp_path)
    for place in (folder, tmp_path):
        made = budget(place, Question())["checkpoint"]
        assert made["bytes"] == storage.nbytes(listed)
        assert made["left_out"] == {"multi-token prediction": storage.nbytes(extra)}
    assert (made["source"], made["difference_bytes"], made["outside"], made["absent_tensors"]) == ("index", 0, None, 0)


@pytest.mark.parametrize("name", STORIES)
def test_headers(name: str) -> None:
    folder = shared(f"checkpoints/{name}")
    made = budget(folder, Question())["checkpoint"]
    assert made["source"] == "files"
    assert made["bytes"] == sum(each.nbytes for each in read_header(Source(folder / "model.safetensors")).values())
    assert (made["difference_bytes"], made["outside"], made["absent_tensors"]) == (0, None, 0)


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize(
    "options", [("int8", None, True), ("int4", None, True), ("int4", 32, True), ("int4", 24, False)], ids=str
)
def test_what_quantize_writes(name: str, options: tuple[str, int | None, bool], tmp_path: Path) -> None:
    """Its tensors to the byte. The header is computed as if all offsets had as many digits as the last: two too many
    for each factor of ten that a tensor begins earlier, of a file of a few hundred kilobytes less than 0.3 %."""
    folder, scheme = shared(f"checkpoints/{name}"), ints.scheme(*options)
    kind = options[0]
    question = Question(quantize=kind, int4=scheme if kind == "int4" else Question().int4)
    planned = budget(folder, question)["formats"][kind]
    written = quantize(folder, tmp_path / "made", scheme)
    header = read_header(Source(tmp_path / "made/model.safetensors"))
    assert planned["tensor_bytes"] == sum(each.nbytes for name, each in header.items() if not is_part(name))
    assert written["bytes"] <= planned["file_bytes"] <= written["bytes"] * 1.003
    again = budget(tmp_path / "made", Question())
    assert again["checkpoint"]["difference_bytes"] == again["checkpoint"]["absent_tensors"] == 0
    assert again["checkpoint_bytes"] == planned["tensor_bytes"]
    loaded = minillm.load(tmp_path / "made").model
    assert again["weight_bytes"] == again["held_bytes"] == sum(each.nbytes for each in loaded.parameters())


@pytest.mark.parametrize("row", tiny.ROWS)
def test_every_family(row: str, tmp_path: Path) -> None:
    """What transformers saves, what the config alone says, and what quantising that writes."""
    folder = tmp_path / "plain"
    folder.mkdir()
    tiny.save(folder, *tiny.ROWS[row])
    report = budget(folder, Question())
    made = report["checkpoint"]
    assert (made["difference_bytes"], made["absent_tensors"]) == (0, 0)
    # Towers that are not read, what predicts further tokens, and constants of an activation.
    beside = {*oracles_wrapped.WRAPPED, "mimo", "apertus", "phi4_multimodal"}
    seen = tower.supported(read(folder)) is not None
    assert bool(made["outside"]) == (tiny.ROWS[row][0] in beside and not seen)
    assert (SEES in made["left_out"]) == seen
    alone = budget(folder / "config.json", Question())["checkpoint"]
    # Where no dtype is stated it is taken as bfloat16, and the files have fp32.
    wider = 2 if "no dtype" in " ".join(alone["notes"]) else 1
    assert alone["decoder_bytes"] * wider == made["decoder_bytes"]
    quantize(folder, tmp_path / "made", ints.scheme("int4"))
    header = read_header(Source(tmp_path / "made/model.safetensors"))
    assert report["formats"]["int4"]["tensor_bytes"] == of_decoder(header)


def test_tensors_outside_the_decoder(tmp_path: Path) -> None:
    """An index tells what they take together, which is said apart; what is missing is counted."""
    source = shared("real-configs/meta-llama__Meta-Llama-3-8B-Instruct")
    folder = tiny.changed(source, tmp_path)
    index = json.loads((source / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(("vision_tower.a", "vision_tower.b"), "model-00001-of-00004.safetensors")
    index["metadata"]["total_size"] += 12345
    (folder / INDEX).write_text(json.dumps(index))
    made = budget(folder, Question())["checkpoint"]
    assert made["outside"] == {"tensors": 2, "bytes": 12345}
    assert (made["difference_bytes"], made["decoder_bytes"]) == (0, 16_060_522_496)
    for name in ("vision_tower.a", "vision_tower.b", "model.norm.weight"):
        del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))
    made = budget(folder, Question())["checkpoint"]
    assert (made["outside"], made["difference_bytes"], made["absent_tensors"]) == (None, 12345, 1)


def test_a_part_for_images_is_named() -> None:
    """Of a model whose tower is not read."""
    notes = budget(shared("real-configs/moonshotai__Kimi-K2.5"), Question())["checkpoint"]["notes"]
    assert len(notes) == 1
    assert "vision_config" in notes[0]


def test_prediction_layers_that_a_file_lacks() -> None:
    """A config may speak of layers that were never saved: names decide where there are any."""
    folder = shared("checkpoints/stories-deepseek-v3")
    assert families.prediction_layers(read(folder))
    assert budget(folder, Question())["checkpoint"]["left_out"] == {}
    assert "multi-token prediction" in budget(folder / "config.json", Question())["checkpoint"]["left_out"]
