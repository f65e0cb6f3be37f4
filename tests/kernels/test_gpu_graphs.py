"""Decode steps recorded as CUDA graphs and replayed on a real GPU; see `test_gpu.py`, and `engine/test_graphs.py` for
all that needs none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minillm.engine.graphs import DecodeGraph, cuda_graph, recorder, step
from minillm.families import resolve
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder, skeleton
from minillm.ops import REFERENCE, Ops, select
from tests.helpers.rows import BASE, ROWS
from tests.helpers.specs import build, random_tokens
from tests.kernels.test_gpu import DTYPES, GPU, TF32_FREE
from tests.kernels.test_gpu import own_cache as own_cache  # what is tuned here is of no use elsewhere
from tests.kernels.test_gpu import pytestmark as pytestmark

# Rings, caps, sinks, a LongRoPE that switches at position 24, latents, experts of each kind.
RECORDED = [
    "llama",
    "gemma2",
    "gpt_oss",
    "phi3-long",
    "qwen3_moe-window",
    "mixtral",
    "deepseek_v3",
    "gemma4",
    "gemma4-experts",
]
TOKENS = 2000


def model_of(row: str, dtype: torch.dtype, ops: Ops | None = None) -> Decoder:
    """A row of `helpers/rows.py` with random weights on the GPU."""
    family, overrides = ROWS[row]
    spec = resolve({**BASE, "model_type": family, **overrides})[0]
    model = Decoder(spec, ops or select("triton", GPU, dtype))
    model.load_state_dict(build(spec).state_dict())
    for parameter, like in zip(model.parameters(), skeleton(spec, dtype).parameters(), strict=True):
        parameter.data = parameter.data.to(GPU, like.dtype)
    return model


def prefilled(model: Decoder, prompt_BT: Tensor, room: int, padding: list[int] | None = None) -> Cache:
    batch, width = prompt_BT.shape
    cache = Cache(model.spec, batch, width + room, model.embedding.weight.dtype, GPU, padding)
    model(prompt_BT, cache)
    return cache


@pytest.mark.parametrize("row", RECORDED)
@torch.inference_mode()
def test_a_replay_is_a_step(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In fp32, as near to a step by itself as attention in other parts allows."""
    model, prompt = model_of(row, torch.float32), random_tokens(3, 14).to(GPU)
    eager, cache = (prefilled(model, prompt, 40, [0, 5, 2]) for _ in range(2))
    assert recorder(model) is cuda_graph
    recorded = DecodeGraph(model, cuda_graph)
    for at in range(40):
        tokens = random_tokens(3, seed=at).to(GPU)
        assert (recorded(tokens, cache) - step(model, tokens, eager)).abs().max() <= TF32_FREE
    assert recorded.recording is not None
    assert "none is recorded" not in capsys.readouterr().err


@DTYPES
@pytest.mark.parametrize("row", RECORDED)
@torch.inference_mode()
def test_a_replay_repeats_its_launches(row: str, dtype: torch.dtype) -> None:
    """Bit for bit, whatever else the GPU has done before."""
    model, prompt = model_of(row, dtype), random_tokens(2, 14).to(GPU)
    launched, cache = (prefilled(model, prompt, 40) for _ in range(2))
    recorded = DecodeGraph(model, cuda_graph)
    for at in range(40):
        tokens = random_tokens(2, seed=at).to(GPU)
        found, replayed = recorded(tokens, cache), recorded.recording is not None
        position = torch.full_like(tokens, launched.length)
        expected = model.decode_at(tokens, position, launched) if replayed else step(model, tokens, launched)
        launched.length += replayed
        assert torch.equal(found, expected)


@pytest.mark.parametrize("row", ["llama", "mixtral", "deepseek_v3"])
@torch.inference_mode()
def test_thousands_of_tokens_without_waiting(row: str) -> None:
    """Each drawn token goes into the next step as it lies on the GPU; and all are those of the same launches without
    a graph."""
    model, prompt = model_of(row, torch.bfloat16), random_tokens(2, 9).to(GPU)
    drawing = [torch.tensor(each, device=GPU) for each in ([0.8, 0.0], [0.9, 1.0], [0.0, 0.0], [7, 8])]
    settings = (drawing[0], torch.tensor([20, 0], dtype=torch.int32, device=GPU), *drawing[1:])

    def texts(graph: bool) -> Tensor:
        cache = prefilled(model, prompt, TOKENS)
        recorded, drawn = DecodeGraph(model, cuda_graph), torch.zeros(2, dtype=torch.int64, device=GPU)
        tokens, found = torch.tensor([3, 4], device=GPU), []
        for at in range(TOKENS):
            if graph or at < 1:  # the first step of a graph is not one
                logits = recorded(tokens, cache)
            else:
                logits = model.decode_at(tokens, torch.full_like(tokens, cache.length), cache)
                cache.length += 1
            tokens = model.ops.sample(logits, *settings, drawn)
            drawn += 1
            found.append(tokens)
            if at == 2:  # recorded by now
                torch.cuda.set_sync_debug_mode("error")
        assert (recorded.recording is not None) == graph
        return torch.stack(found)

    try:
        results = []
        for graph in (True, False):
            results.append(texts(graph))
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(*results)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_what_waits_is_not_recorded_and_spoils_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The plain experts ask the device how many tokens each has; what is recorded after that is sound."""
    model = model_of("mixtral", torch.float32, REFERENCE)
    eager, cache = (prefilled(model, random_tokens(2, 9).to(GPU), 8) for _ in range(2))
    refused = DecodeGraph(model, cuda_graph)
    for at in range(8):
        tokens = random_tokens(2, seed=at).to(GPU)
        assert torch.equal(refused(tokens, cache), step(model, tokens, eager))
    assert capsys.readouterr().err.count("none is recorded") == 1
    test_a_replay_is_a_step("llama", capsys)
