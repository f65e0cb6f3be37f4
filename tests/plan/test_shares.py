"""What each rank holds by the plan is what the model of a rank has."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from minillm.explain import __main__ as explain
from minillm.model.decoder import skeleton
from minillm.parallel.split import able, local
from minillm.plan import __main__ as plan
from minillm.plan.budget import Question, budget
from minillm.plan.devices import device
from minillm.report.examine import examine
from tests.conftest import exit_code, shared

NAMES = (
    "meta-llama__Llama-3.1-8B",
    "Qwen__Qwen2.5-0.5B-Instruct",
    "google__gemma-3-4b-it",
    "mistralai__Mixtral-8x7B-v0.1",
    "allenai__Olmo-3.1-32B-Instruct",
)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_each_rank(name: str) -> None:
    path = shared(f"real-configs/{name}")
    spec = examine(path).spec
    for ranks in able(spec, 4):
        found = budget(path, Question(ranks=ranks, context=1000, dtype="bfloat16"))
        beside = found["tower"]["bytes"] if found["tower"] and ranks == 1 else 0  # ranks see no pictures
        for rank, each in enumerate(found["ranks"]):
            made = skeleton(local(spec, ranks, rank), torch.bfloat16)
            assert each["weight_bytes"] == beside + 2 * sum(parameter.numel() for parameter in made.parameters())


def test_caches_are_split_and_latents_are_not() -> None:
    """Llama 3.1 8B has 8 kv heads: over 16 ranks each is on two. DeepSeek-V3's latents are whole on each."""

    def caches(name: str, ranks: int) -> list[int]:
        path = shared(f"real-configs/{name}")
        return [each["kv_bytes"] for each in budget(path, Question(ranks=ranks, context=1000))["ranks"]]

    assert caches("meta-llama__Llama-3.1-8B", 8) == [131072 // 8 * 1000] * 8
    assert caches("meta-llama__Llama-3.1-8B", 16) == [131072 // 8 * 1000] * 16
    assert caches("deepseek-ai__DeepSeek-V3", 8) == [70272 * 1000] * 8


def test_whole_experts(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 128 experts of 768 values each of 8 ranks has 16; of 4 ranks each has a slice of all."""
    path = shared("real-configs/Qwen__Qwen3-30B-A3B")
    spec = examine(path).spec
    made = skeleton(local(spec, 8, 7), torch.bfloat16)
    found = budget(path, Question(ranks=8, context=1000, dtype="bfloat16"))["ranks"]
    assert {each["whole_experts"] for each in found} == {16}
    assert found[7]["weight_bytes"] == 2 * sum(parameter.numel() for parameter in made.parameters())
    assert budget(path, Question(ranks=4))["ranks"][0]["whole_experts"] is None
    assert plan.main(["--weights", str(path), "--ranks", "8"]) == 0
    assert "of cache, 16 whole experts of each mixture" in capsys.readouterr().out
    assert explain.main(["--weights", str(path), "--ranks", "8", "--equations"]) == 0
    out = capsys.readouterr().out
    assert "ranks 0 to 7 of 8" in out
    assert "sum over those chosen e that are 0 to 15" in out


def test_whether_the_largest_fits() -> None:
    """16 GB over three ranks that have 3, 3 and 2 of 8 kv heads: 12 GB are too few for one, 6 GB for three."""
    path = shared("real-configs/meta-llama__Llama-3.1-8B")

    def fit(size: str, ranks: int) -> dict[str, Any]:
        return budget(path, Question(ranks=ranks, context=1000, device=device(size)))["fit"]

    assert not fit("12GB", 1)["fits"]
    assert fit("12GB", 1)["devices_needed"] == 2
    assert fit("12GB", 3)["fits"]
    found = fit("6GB", 3)
    assert not found["fits"]
    assert found["devices_needed"] == 4
    assert fit("6GB", 4)["fits"]
    assert fit("1MB", 3)["devices_needed"] is None


def test_a_rank_explained(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(shared("real-configs/Qwen__Qwen2.5-0.5B-Instruct"))
    assert explain.main(["--weights", path, "--ranks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["ranks"] for each in found] == [[0], [1]]  # as 4864 values are 19 x 256
    layers = [each["spec"]["layers"][0] for each in found]
    assert [layer["ffn"]["intermediate_size"] for layer in layers] == [2304, 2560]
    assert {(layer["attention"]["num_heads"], layer["attention"]["num_kv_heads"]) for layer in layers} == {(7, 1)}
    assert explain.main(["--weights", path, "--ranks", "2", "--equations"]) == 0
    out = capsys.readouterr().out
    assert "rank 0 of 2" in out
    assert "7 and 1 heads of 64" in out
    assert "rows=[0, 75968]" in out


def test_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(shared("real-configs/Qwen__Qwen2.5-0.5B-Instruct"))
    for main, flags, message in (
        (plan.main, ["--ranks", "3"], "3 ranks cannot share this model: layer 0 has 14 heads over 2 kv heads"),
        (plan.main, ["--gpu", "24GB", "--gpus", "4", "--ranks", "2"], "--gpus is 4 and --ranks 2"),
        (plan.main, ["--ranks", "0"], "--ranks is 0"),
        (explain.main, ["--ranks", "0"], "--ranks is 0"),
        (explain.main, ["--ranks", "2", "--tensors"], "--ranks goes with neither"),
    ):
        assert exit_code(main, ["--weights", path, *flags]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
