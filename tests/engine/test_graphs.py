"""Decode steps recorded and replayed, on a GPU that is made up (`tests/helpers/recording.py`): a replay is a step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.engine import graphs
from minillm.engine.graphs import DecodeGraph, cuda_graph, recorder
from minillm.families import resolve
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.ops import REFERENCE, Ops, select
from minillm.spec import Decoder as Spec
from minillm.spec import DynamicScaling, GatedMLP, LongRopeScaling, MoE
from tests.helpers.recording import Gpu
from tests.helpers.rows import BASE, ROWS
from tests.helpers.specs import build, random_tokens, specs

TRITON = select("triton", torch.device("cpu"), torch.float32)
EXACT = 2e-5  # as in test_laws.py


def of(row: str, ops: Ops = TRITON) -> Decoder:
    """The first two layers of a row of `tests/helpers/rows.py`: with and without a window, or experts."""
    family, overrides = ROWS[row]
    spec = resolve({**BASE, "model_type": family, **overrides})[0]
    return with_ops(build(replace(spec, layers=spec.layers[:2])), ops)


def with_ops(plain: Decoder, ops: Ops) -> Decoder:
    model = Decoder(plain.spec, ops)
    model.load_state_dict(plain.state_dict())
    return model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def prefilled(model: Decoder, tokens_BT: Tensor, room: int, padding: list[int] | None = None) -> Cache:
    cache = Cache(model.spec, len(tokens_BT), tokens_BT.shape[1] + room, torch.float32, padding=padding)
    model(tokens_BT, cache)
    return cache


def compared(
    plain: Decoder, model: Decoder, prompt: Tensor, steps: int, padding: list[int] | None = None
) -> DecodeGraph:
    """Both models decode the same tokens, one without a graph; the graph in use at the end."""
    eager, cache = (prefilled(each, prompt, steps + 2, padding) for each in (plain, model))
    recorded = DecodeGraph(model, cuda_graph)
    for at in range(steps):
        tokens_B = random_tokens(len(prompt), seed=at)
        expected = graphs.step(plain, tokens_B, eager)
        assert (recorded(tokens_B, cache) - expected).abs().max() <= EXACT
        assert cache.length == eager.length
    return recorded


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs(), st.integers(1, 8), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(3, 9))
@torch.inference_mode()
def test_a_replay_is_a_step(gpu: Gpu, spec: Spec, width: int, padding: list[int], steps: int) -> None:
    """Whatever the decoder, rings and padded rows too; its experts, which wait for the device, made dense."""
    layers = [replace(each, ffn=GatedMLP(12)) if isinstance(each.ffn, MoE) else each for each in spec.layers]
    model = build(replace(spec, layers=tuple(layers)))
    prompt = random_tokens(len(padding), width + max(padding))
    assert compared(model, model, prompt, steps, padding).recording is not None


@pytest.mark.usefixtures("small_kernels")
@pytest.mark.parametrize("row", ["gemma2", "olmo-clip", "qwen3_moe-window", "deepseek_v3", "gemma4"])
@torch.inference_mode()
def test_a_replay_through_the_kernels(gpu: Gpu, row: str) -> None:
    """Nor do any of them wait: rings that wrap, caps, latents, experts."""
    plain = of(row, REFERENCE)
    recorded = compared(plain, with_ops(plain, TRITON), random_tokens(2, 5), 3, padding=[0, 2])
    assert recorded.recording is not None
    assert gpu.log == ["warm-up", "waiting is an error", "recording"]


@pytest.mark.usefixtures("small_kernels")
@torch.inference_mode()
def test_nothing_waits_from_token_to_token(gpu: Gpu) -> None:
    """What is drawn goes into the next step as it lies on the device; a drawn row, and a greedy one."""
    model = of("llama")
    drawing = [torch.tensor([0.8, 0.0]), torch.tensor([9, 0]).int(), *torch.tensor([[0.9, 1.0], [0.0, 0.0]])]
    found = []
    for step in (DecodeGraph(model, cuda_graph), partial(graphs.step, model)):
        cache, tokens_B, texts = prefilled(model, random_tokens(2, 5), 12), torch.tensor([3, 4]), []
        with gpu.watched():
            for drawn in range(5):
                logits_BV = step(tokens_B, cache)
                tokens_B = TRITON.sample(logits_BV, *drawing, torch.tensor([7, 8]), torch.full((2,), drawn))
                texts.append(tokens_B)
        found.append(torch.stack(texts))
    assert torch.equal(*found)
    assert gpu.log.count("recording") == 1


@torch.inference_mode()
def test_what_waits_is_not_recorded(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    """The plain experts ask the device how many tokens each has: one line says so, and steps go one by one."""
    model = of("mixtral", REFERENCE)
    recorded = compared(model, model, random_tokens(2, 5), 5)
    assert recorded.recording is None
    assert gpu.log == ["warm-up", "waiting is an error"]
    line = "minillm: decode steps go call by call, none is recorded: called a synchronizing CUDA operation: "
    assert capsys.readouterr().err.startswith(line)
    assert gpu.mode == 0


@torch.inference_mode()
def test_frequencies_that_change_once_are_recorded_anew(gpu: Gpu) -> None:
    """LongRoPE turns otherwise from position 24 on."""
    model = of("phi3-long", REFERENCE)
    assert any(isinstance(each.attention.rope.scaling, LongRopeScaling) for each in model.spec.layers)
    assert compared(model, model, random_tokens(1, 20), 10).recording is not None
    assert gpu.log.count("recording") == 2


@torch.inference_mode()
def test_frequencies_that_change_with_every_position_are_not_recorded(gpu: Gpu) -> None:
    """Dynamic scaling beyond position 24."""
    model = of("llama-dynamic-beyond", REFERENCE)
    assert any(isinstance(each.attention.rope.scaling, DynamicScaling) for each in model.spec.layers)
    assert compared(model, model, random_tokens(1, 20), 4).recording is not None
    assert compared(model, model, random_tokens(1, 20), 10).recording is None
    assert gpu.log.count("recording") == 2


@torch.inference_mode()
def test_a_cache_that_moves_or_goes_back(gpu: Gpu) -> None:
    """A batch that shrinks and a cache that lies elsewhere are recorded anew; a length that goes back needs nothing."""
    model, prompt = of("llama", REFERENCE), random_tokens(3, 6)
    cache = prefilled(model, prompt, 12)
    step, tokens = DecodeGraph(model, cuda_graph), random_tokens(3, 9, seed=5)

    def expect(rows: int, at: int, recordings: int) -> None:
        found = step(tokens[:rows, at], cache)
        whole = model(torch.cat((prompt, tokens[:, : at + 1]), dim=1))[:rows, -1]
        assert (found - whole).abs().max() <= EXACT
        assert gpu.log.count("recording") == recordings

    for at in (0, 1, 2):
        expect(3, at, min(at, 1))
    cache.length -= 2
    for at in (1, 2):
        expect(3, at, 1)
    for layer in cache.layers:
        layer.k, layer.v = layer.k[:2].clone(), layer.v[:2].clone()
    for at, recordings in ((3, 1), (4, 2), (5, 2)):
        expect(2, at, recordings)
    for layer in cache.layers:
        layer.k, layer.v = layer.k.clone(), layer.v.clone()
    for at, recordings in ((6, 2), (7, 3)):
        expect(2, at, recordings)


@torch.inference_mode()
def test_a_full_cache_is_not_written_beyond(gpu: Gpu) -> None:
    model = of("llama", REFERENCE)
    step, cache = DecodeGraph(model, cuda_graph), prefilled(model, random_tokens(1, 3), 3)
    for _ in range(3):
        step(torch.tensor([1]), cache)
    with pytest.raises(AssertionError, match="7 positions in a cache of 6"):
        step(torch.tensor([1]), cache)


def test_what_reads_the_whole_capacity_or_leaves_nothing_behind_is_not_recorded() -> None:
    assert recorder(of("llama", REFERENCE)) is None
    assert recorder(of("llama", TRITON)) is None
