"""The plan: figures computed by hand, whether it fits, licences, pictures, and what the command line refuses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.plan.budget import Question, budget, contexts
from minillm.plan.devices import DEVICES, Device, device
from minillm.plan.fit import Need, fit, largest
from minillm.plan.plot import apart
from minillm.plan.report import flops, lines
from minillm.report.words import parameters, size
from minillm.spec import GQA, Decoder, GatedMLP, Layer, Norm, Rope
from tests.conftest import shared

LLAMA, V3 = "real-configs/meta-llama__Llama-3.1-8B", "real-configs/deepseek-ai__DeepSeek-V3"


def asked(name: str, **question: Any) -> dict[str, Any]:
    return budget(shared(name), Question(**question))


def test_by_hand() -> None:
    """Llama 3.1 8B: 32 layers of 8 heads of 128 for keys and values, embedding and head of 128256 x 4096."""
    report, head = asked(LLAMA, context=1000, batch=3), 128256 * 4096
    assert report["kv_bytes_per_token"] == 32 * 2 * 8 * 128 * 2 == 131072
    assert report["checkpoint_bytes"] == 16_060_522_496 == 2 * report["parameters"]
    assert report["kv_bytes"] == 3 * 1000 * 131072
    assert report["step_weight_bytes"] == 16_060_522_496 - 2 * head
    matrices = 8_030_261_248 - 2 * head - 65 * 4096  # of all layers, without norms
    pairs = 1000 * 1001 // 2
    assert report["flops"]["prefill"] == 2 * matrices * 1000 + 2 * head + 32 * 32 * 4 * 128 * pairs
    assert report["flops"]["decode_per_token"] == 2 * matrices + 2 * head + 32 * 32 * 4 * 128 * 1000
    # 128 x 128 blocks with an fp32 factor; int8 with one for a row of every matrix, embedding and head too.
    rows = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    norms = 2 * 65 * 4096
    assert report["formats"]["fp8"]["tensor_bytes"] == matrices + 4 * matrices // 128**2 + 4 * head + norms
    assert report["formats"]["int8"]["tensor_bytes"] == matrices + 2 * head + 4 * (rows + 2 * 128256) + norms
    # Embedding and head take 6 bits and 8 for each 16 values.
    int4 = matrices // 2 + matrices // 16 + 4 * rows + 2 * head * 13 // 16 + 8 * 128256 + norms
    assert report["formats"]["int4"]["tensor_bytes"] == int4


def test_latents_by_hand() -> None:
    """DeepSeek-V3: 61 layers of a latent of 512 and a rotary key of 64 values."""
    report = asked(V3)
    assert report["kv_bytes_per_token"] == 61 * (512 + 64) * 2 == 70272
    assert report["kv_bytes_by_context"]["163840"] == 70272 * 163840


def test_windows_stop_growing() -> None:
    """Gemma 3 4B: 34 layers of 4 heads of 256, of which every sixth sees all."""
    report, each = asked("real-configs/google__gemma-3-4b-it", context=5000), 2 * 4 * 256 * 2
    assert report["kv_bytes_per_token"] == 34 * each
    assert report["kv_bytes"] == each * (5 * 5000 + 29 * 1024)
    assert report["kv_bytes_by_context"]["512"] == 34 * each * 512


def test_what_is_not_read_is_held_all_the_same(tmp_path: Path) -> None:
    """An indexer leaves 2048 keys to a query; keys and values that several layers read lie there once."""
    values = {"model_type": "deepseek_v32", "num_hidden_layers": 3, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    report = budget(tmp_path, Question(context=100_000))
    assert report["kv_bytes"] == 3 * 2 * 100_000 * (512 + 64 + 128)
    assert report["step_cache_bytes"] == 3 * 2 * (2048 * (512 + 64) + 100_000 * 128)
    report = asked("real-configs/google__gemma-4-E2B-it", context=1000)
    assert report["kv_bytes"] == 2 * (12 * 512 * 2 * 256 + 3 * 1000 * 2 * 512)


def test_experts_of_a_batch() -> None:
    """Mixtral: two of eight experts for one token; two tokens read 8 (1 - (3/4)^2) = 3.5 on average."""
    one, two = (asked("real-configs/mistralai__Mixtral-8x7B-v0.1", batch=each) for each in (1, 2))
    experts = 2 * 32 * 8 * 3 * 4096 * 14336
    rest = one["checkpoint_bytes"] - experts - 2 * 32000 * 4096
    assert one["step_weight_bytes"] == rest + experts // 4
    assert two["step_weight_bytes"] == rest + experts * 7 // 16


def test_bounds() -> None:
    report = asked(LLAMA, context=1000, batch=3, device=device("h100 sxm"), devices=2)
    read = report["step_weight_bytes"] + report["kv_bytes"]
    assert report["speed"]["decode_tokens_per_second"] == pytest.approx(3 * 2 * 3.35e12 / read)
    prompt = report["flops"]["prefill"] / 1000
    assert report["speed"]["prefill_tokens_per_second"] == pytest.approx(2 * 989.4e12 / prompt)
    assert set(asked(LLAMA, device=device("24GB"))["speed"].values()) == {None}


def test_quantised_and_in_another_dtype() -> None:
    plain = asked(LLAMA)
    for kind in ("fp8", "int8", "int4"):
        report = asked(LLAMA, quantize=kind)
        assert (report["format"], report["weight_bytes"]) == (kind, plain["formats"][kind]["tensor_bytes"])
        assert report["step_weight_bytes"] < plain["step_weight_bytes"]
    report = asked(LLAMA, dtype="float32")
    assert (report["weight_bytes"], report["kv_bytes_per_token"]) == (2 * plain["weight_bytes"], 262144)


@given(st.integers(10**8, 10**11), st.integers(1, 9), st.integers(1, 64), st.integers(1, 131072))
def test_what_would_fit_fits(memory: int, count: int, batch: int, context: int) -> None:
    """Each remedy is enough, and the next larger one is not."""
    norm = Norm(1e-5)
    layers = [Layer(norm, GQA(4, 2, 64, Rope(64, 1e4), window), norm, GatedMLP(512)) for window in (None, 1024)]
    spec, one = Decoder(1000, 256, (*layers,) * 16, norm, True, 131072), Device("one", memory)
    sizes = {"bfloat16": 16 * 10**9, "fp8": 9 * 10**9, "int8": 8 * 10**9, "int4": 5 * 10**9}
    need = Need(spec, sizes["bfloat16"], sizes, context, batch, 2)
    found, room = fit(need, one, count), memory * count * 0.9
    assert found["fits"] == (need.total() <= room)
    assert fit(need, one, found["devices_needed"])["fits"]
    assert found["devices_needed"] == 1 or not fit(need, one, found["devices_needed"] - 1)["fits"]
    longest = found["largest_context"]
    assert sizes["bfloat16"] + (need.cache(longest, batch) if longest else 0) <= room or not longest
    assert longest == 131072 or sizes["bfloat16"] + need.cache(longest + 1, batch) > room
    assert found["fits"] == (longest >= context) == (found["largest_batch"] >= batch)
    better = [name for name in ("fp8", "int8", "int4") if sizes[name] + need.cache(context, batch) <= room]
    assert found["formats"] == ([] if found["fits"] else better)
    if both := found["together"]:
        assert (found["fits"], found["formats"], longest) == (False, [], 0)
        assert sizes[both["format"]] + need.cache(both["largest_context"], batch) <= room


def test_largest() -> None:
    assert [largest(9, lambda each, top=top: each <= top) for top in (0, 1, 8, 9, 10)] == [0, 1, 8, 9, 9]


def test_contexts() -> None:
    assert contexts(100) == [100]
    assert contexts(512) == [128, 256, 512]
    assert contexts(600) == [128, 256, 512, 600]


def test_sentences() -> None:
    text = "\n".join(lines(asked(LLAMA, device=device("12GB"), context=8192)))
    assert "no: 16.06 GB of weights (as stored) and 1.07 GB of cache do not go into 10.80 GB" in text
    ways = "a checkpoint in fp8: 9.08 GB", "--quantize int8: 8.04 GB", "no shorter context", "--gpus 2"
    assert sorted(ways, key=text.index) == list(ways)
    assert "yes: 16.06 GB" in "\n".join(lines(asked(LLAMA, device=device("RTX 4090"))))
    assert "or a batch of 1,048,576 at" in "\n".join(lines(asked(LLAMA, device=device("1000TB"), context=1)))
    assert "--gpus" not in "\n".join(lines(asked(LLAMA, device=device("0.2MB"))))  # 96,000, which may not be asked
    long = lines(asked(V3, device=device("h200"), devices=4, batch=32))
    assert max(map(len, long[1:])) <= 100
    assert "window" not in text
    assert "as long as every window sees it" in "\n".join(lines(asked("real-configs/google__gemma-3-4b-it")))
    held = {"deepseek-ai__DeepSeek-V3": "which files tell: with --dequantize it makes 1.34 TB",
            "openai__gpt-oss-20b": "which files tell: with --dequantize it makes 41.83 GB",
            "bnb__Llama-3.1-8B-Instruct": "which files tell: with --dequantize it makes 16.06 GB"}  # fmt: skip
    for name, said in held.items():
        assert said in " ".join(" ".join(lines(asked(f"real-configs/{name}", device=device("h200")))).split())
    assert [parameters(each) for each in (8_030_261_248, 885_504, 4224)] == ["8.03 B", "0.89 M", "4,224"]
    assert [size(each) for each in (999, 1000, 16060522496, 1.5e12)] == ["999 bytes", "1.00 kB", "16.06 GB", "1.50 TB"]
    assert [flops(each) for each in (2.5e6, 1e8, 16111042560)] == ["2.50 MFLOP", "0.10 GFLOP", "16.11 GFLOP"]


@pytest.mark.parametrize(
    ("text", "nbytes"), [("24GB", 24e9), ("80 GiB", 80 * 2**30), ("0.5tb", 5e11), ("512MiB", 2**29), ("h100-sxm", 80e9)]
)
def test_devices(text: str, nbytes: float) -> None:
    assert device(text).memory == nbytes


@pytest.mark.parametrize("text", ["", "24", "GB", "-1GB", "0GB", "1e9GB", "9999999GB", "24GB24GB", "RTX", "nanGB"])
def test_no_device(text: str) -> None:
    with pytest.raises(ValueError, match="--gpu"):
        device(text)


def test_parts_of_names() -> None:
    assert [device(text).name for text in ("4090", "L4", "l40", "m3 ultra", "a100 80gb")] == [
        "RTX 4090", "L4", "L40S", "M3 Ultra 512GB", "A100 80GB"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="may be H100 PCIe, H100 SXM; say which"):
        device("h100")


def test_figures_of_devices_are_plausible() -> None:
    """A slip of a factor of a thousand, or figures with sparsity for one of the two."""
    for each in DEVICES.values():
        assert 1e11 < each.bandwidth < 1e13, each
        if each.fp8:
            assert each.fp8 / each.bf16 == pytest.approx(2, rel=0.02), each
            assert 50 < each.bf16 / each.bandwidth < 500, each


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted))
def test_names_do_not_overlap(wanted: list[float]) -> None:
    placed = apart(wanted, 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(placed))
    if all(b - a >= 0.05 for a, b in itertools.pairwise(wanted)):
        assert placed == pytest.approx(wanted)
