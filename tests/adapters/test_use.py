"""Adapters on a model that is used: one for all, merged or beside the weights, or one for each request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm.adapters.merging import merge
from minillm.adapters.read import read
from minillm.llm import LLM
from tests.adapters.test_peft import LINEAR, OPTIONS
from tests.helpers import adapters, tiny

FP32 = 2e-5
LONG = 40  # new tokens: passes of one shape that are enough for a recording
MERGED = ["qwen3", "phi3", "gpt_neox", "mixtral", "deepseek_v3", "gpt_oss", "dora", "dora-layout", "bias and dora",
          "biases of adapted", "embedding and head", "tied embedding", "tied head", "saved", "saved tied head",
          "router"]  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
@torch.no_grad()
def test_merged_is_the_adapter(name: str, tmp_path: Path) -> None:
    row, options = OPTIONS[name]
    theirs, folder = adapters.made(tmp_path, row, **options)
    llm = minillm.load(tmp_path, device="cpu", kernels="reference")
    tokens = tiny.tokens(llm.spec.vocab_size, 2, 20)
    adapter = read(llm, folder)
    adapter.freeze()
    beside = llm.model(tokens)
    moved = merge(adapter)
    assert (llm.model(tokens) - beside).abs().max() <= FP32
    assert (llm.model(tokens) - tiny.logits(theirs, tokens)).abs().max() <= FP32
    assert moved.changed > 0
    assert moved.share < 0.01


@torch.no_grad()
def test_loops_take_merged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loaded for the loops the adapter is merged, with plain PyTorch it is not; both say so and write the same."""
    theirs, folder = adapters.made(tmp_path, "qwen3", **LINEAR)
    tokens = tiny.tokens(97, 1, 20)
    expected = tiny.logits(theirs, tokens)
    for kernels, said in (("auto", "is merged into the weights: 0% of the"), ("reference", "is applied beside")):
        llm = minillm.load(tmp_path, device="cpu", kernels=kernels, adapter=folder)
        assert said in capsys.readouterr().err
        assert (llm.model(tokens) - expected).abs().max() <= FP32


@torch.no_grad()
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_beside_quantised_weights(quantize: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Integers stay as they are: what the adapter adds is what it adds to their values."""
    _, folder = adapters.made(tmp_path, "qwen3", **LINEAR)
    tokens = tiny.tokens(97, 1, 20)
    llm = minillm.load(tmp_path, device="cpu", quantize=quantize, adapter=folder)
    assert "beside" in capsys.readouterr().err
    plain = minillm.load(tmp_path, device="cpu", kernels="reference", dtype="float32")
    for name, module in plain.model.named_modules():
        held = llm.model.get_submodule(name)
        for leaf in getattr(module, "MULTIPLIED", ()):
            getattr(module, leaf).copy_(minillm.model.held.matrix(held, leaf, torch.float32))
    read(plain, folder)
    assert (llm.model(tokens) - plain.model(tokens)).abs().max() <= 1e-4 * plain.model(tokens).abs().max()


@pytest.fixture(scope="module", params=["qwen3", "mixtral", "tied"])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A model and two adapters of other targets and ranks."""
    rows = {"qwen3": ("qwen3", LINEAR), "mixtral": ("mixtral", LINEAR),
            "tied": ("qwen2-tied", {"target_modules": ["q_proj", "lm_head", "embed_tokens"]})}  # fmt: skip
    row, options = rows[request.param]
    folder = tmp_path_factory.mktemp("several")
    _, first = adapters.made(folder, row, **options)
    first = first.rename(folder / "first")
    _, second = adapters.made(folder, row, r=2, target_modules=["v_proj", "o_proj"])
    return folder, {"one": first, "two": second.rename(folder / "second")}


@torch.no_grad()
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_each_request_has_its_own(several: tuple[Path, dict[str, Path]], kernels: str) -> None:
    """In one batch each request writes what it writes alone, in a model that has no other adapter."""
    folder, given = several
    llm = minillm.load(folder, device="cpu", kernels=kernels, adapter=given)
    prompts = [tiny.tokens(97, 9, seed=i).tolist() for i in range(2)]
    names = ["one", None, "two", "one", None, "two"]
    alone = {name: _alone(folder, given.get(name or ""), kernels, prompts) for name in ("one", "two", None)}
    assert len({json.dumps(each) for each in alone.values()}) == 3
    asked: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    rows = [llm.completion(prompt_ids=prompts[i % 2], adapter=name, **asked) for i, name in enumerate(names)]
    timings = minillm.engine.completion.Timings()
    for _ in llm.run(rows, timings):
        pass
    assert [row.token_ids for row in rows] == [alone[name][i % 2] for i, name in enumerate(names)]


def _alone(
    folder: Path, adapter: Path | None, kernels: Any, prompts: list[list[int]], count: int = 12
) -> list[list[int]]:
    llm = minillm.load(folder, device="cpu", kernels=kernels, adapter=adapter)
    return [
        llm.generate(prompt_ids=ids, max_new_tokens=count, temperature=0, ignore_eos=True).token_ids for ids in prompts
    ]


def test_a_recorded_pass_is_that_of_its_adapter(several: tuple[Path, dict[str, Path]]) -> None:
    """One engine, one request at a time: passes of the same shape that are repeated from a recording, under each."""
    folder, given = several
    llm, prompt = minillm.load(folder, device="cpu", adapter=given), tiny.tokens(97, 9).tolist()
    engine, written = minillm.Engine(llm, 2**24), []
    names = ("one", "two", None, "one")
    for name in names:
        row = llm.completion(prompt_ids=prompt, adapter=name, temperature=0, max_new_tokens=LONG, ignore_eos=True)
        tuple(engine.submit(row))
        written.append(row.token_ids)
    # Which experts have a token only the host knows, where these have an adapter: such a pass is not recorded.
    assert bool(engine.engine.recorded.made) == (not any("experts" in name for name in llm.model.state_dict()))
    engine.close()
    assert written == [_alone(folder, given.get(name or ""), "auto", [prompt], LONG)[0] for name in names]


def test_no_prefix_is_shared_between_adapters(several: tuple[Path, dict[str, Path]]) -> None:
    """The same prompt under another adapter finds nothing of what was computed before; under the same one it does."""
    folder, given = several
    llm = minillm.load(folder, device="cpu", kernels="reference", adapter=given)
    engine = minillm.Engine(llm, 2**24)
    ids = tiny.tokens(97, 70, seed=3).tolist()
    cached = []
    for name in ("one", "two", None, "one"):
        ticket = engine.submit(llm.completion(prompt_ids=ids, adapter=name, max_new_tokens=2, ignore_eos=True))
        tuple(ticket)
        cached.append(ticket.request.cached)
    engine.close()
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 0


def test_names_are_checked(several: tuple[Path, dict[str, Path]]) -> None:
    folder, given = several
    llm = minillm.load(folder, device="cpu", kernels="reference", adapter=given)
    with pytest.raises(ValueError, match=r"no adapter 'three'; there are one, two"):
        llm.generate(prompt_ids=[1], adapter="three")
    view: LLM = llm.through("two")
    assert view.completion(prompt_ids=[1]).asked.adapter == "two"
    with pytest.raises(ValueError, match=r"no adapter 'one'; none was loaded by name"):
        minillm.load(folder, device="cpu", kernels="reference").generate(prompt_ids=[1], adapter="one")


def test_what_cached_latents_go_through_is_not_chosen_by_request(tmp_path: Path) -> None:
    """Alone such an adapter is right; of several the rows of others would go through it."""
    _, folder = adapters.made(tmp_path, "deepseek_v3", **LINEAR)
    with pytest.raises(
        ValueError, match=r"it has an adapter of kv_b_proj \(layers.0.attention\), which what is cached"
    ):
        minillm.load(tmp_path, device="cpu", adapter={"one": folder})
    _, folder = adapters.made(tmp_path, "deepseek_v3", target_modules=["o_proj", "kv_a_proj_with_mqa"])
    assert list(minillm.load(tmp_path, device="cpu", adapter={"one": folder}).model.choice.known) == ["one"]


def test_no_salt_is_taken_for_an_adapter(several: tuple[Path, dict[str, Path]]) -> None:
    """A request without an adapter, whose salt is an adapter's identity, has other keys than one with that adapter."""
    folder, given = several
    choice = minillm.load(folder, device="cpu", kernels="reference", adapter=given).model.choice
    assert choice.identity(None) + choice.identity("one") != choice.identity("one") + b""
    assert len({len(choice.identity(name)) for name in (None, *given)}) == 1
