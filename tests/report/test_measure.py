"""What is known without a clock: sizes, bytes and operations, and the figures that come of them, by hand."""

from __future__ import annotations

import pytest
import torch

from minillm import families
from minillm.bench.report import Limits, Point, ratios, speeds
from minillm.families.shared.shapes import SHAPES
from minillm.loading import load
from minillm.model import held as quantised
from minillm.model.costs import attention_flops, bytes_per_step, cached_values_seen, prefill_flops
from minillm.model.decoder import skeleton
from minillm.weights.forms import Segment
from minillm.weights.fp8 import Fp8

COUNTS = {
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-moe-1.3b": 1_305_243_648,
    "qwen3.5-0.8b": 752_393_024,
    "lfm2-1.2b": 1_170_340_608,
    "nemotron-h-4b": 4_489_223_040,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_published_size(shape: str) -> None:
    spec, _, config = families.resolve(SHAPES[shape])
    assert sum(parameter.numel() for parameter in skeleton(spec, torch.bfloat16).parameters()) == COUNTS[shape]
    assert config.unread == []


def test_bytes_per_step() -> None:
    """All weights; the embedding only when it is the head too."""
    tied = load(dtype="float32", kernels="reference").model
    assert bytes_per_step(tied) == 4 * sum(parameter.numel() for parameter in tied.parameters())
    small = {**SHAPES["qwen3-0.6b"], "tie_word_embeddings": False, "vocab_size": 10, "num_hidden_layers": 1}
    untied = skeleton(families.resolve(small)[0], torch.float32)
    everything = 4 * sum(parameter.numel() for parameter in untied.parameters())
    assert bytes_per_step(untied) == everything - 4 * untied.embedding.weight.numel()


@pytest.mark.parametrize("held", [False, True])
def test_bytes_per_step_of_a_mixture(held: bool) -> None:
    """Of 64 experts a token reads the 8 that it chose, and of held fp8 their factors too; the router is fp32."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "moe_intermediate_size": 128, "vocab_size": 100}
    model = skeleton(families.resolve({**SHAPES["qwen3-moe-1.3b"], **sizes})[0], torch.bfloat16)
    of_one_expert = 3 * 128 * 128
    others = {n: p for n, p in model.named_parameters() if ".experts." not in n}
    rest = sum(p.numel() * (4 if "router" in n else 2) for n, p in others.items())
    if held:
        experts = [(name, p.shape[1]) for name, p in model.named_parameters() if ".experts." in name]
        quantised.hold(model, {name: (Segment(0, outputs, Fp8()),) for name, outputs in experts})
    each = of_one_expert + 4 * 3 * 128 if held else 2 * of_one_expert  # a factor for each row of each block
    assert bytes_per_step(model) == rest + 2 * 8 * each


ROUNDS = {
    "minillm": [{"prefill": 1.0, "decode": [0.1, 0.2, 0.3]}, {"prefill": 3.0, "decode": [0.4, 0.4, 0.6]}],
    "peer": [{"prefill": 2.0, "decode": [0.4, 0.4, 0.4]}, {"prefill": 3.0, "decode": [0.8, 0.2, 0.9]}],
}


def test_figures_by_hand() -> None:
    """A mixture without its own head: 2 rows of 5 tokens, decoding behind 7 positions and on average 1 more."""
    small = {**SHAPES["qwen3-moe-1.3b"], **dict.fromkeys(("hidden_size", "moe_intermediate_size"), 8), "head_dim": 4}
    small |= {"vocab_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = skeleton(families.resolve(small)[0], torch.bfloat16)
    expert, rest = 3 * 8 * 8, 8 * (8 + 2 * 4) + 8 * 8
    router, norms = 64 * 8, 3 * 8 + 2 * 4
    flops = 2 * 5 * (8 * expert + rest + router) + 2 * 10 * 8 + 2 * 2 * (1 + 2 + 3 + 4 + 5) * 2 * 4
    assert prefill_flops(model, 5) == flops
    plain = 2 * (10 * 8 + rest + norms) + 4 * router
    one, two = (plain + 2 * round(64 * expert * (1 - (7 / 8) ** n)) for n in (1, 2))
    assert (bytes_per_step(model), bytes_per_step(model, 2)) == (one, two)
    facts = {"bytes_per_step": 10 * one, "cache_bytes_per_value": 3}
    found = speeds(model, Point(2, 5, 7), ROUNDS["minillm"], facts, Limits(1e6, 1e9))
    assert found == {
        "prefill_tok_s": 2 * 5 / 2.0,
        "decode_tok_s": pytest.approx(2 / 0.35),
        "bandwidth_share": pytest.approx((10 * two + 3 * 2 * 8 * 2 * 4) / 0.35 / 1e6),
        "matrix_share": pytest.approx(2 * flops / 2.0 / 1e9),
    }
    unknown = speeds(model, Point(2, 5, 7), ROUNDS["minillm"], facts, Limits(None, None))
    assert (unknown["bandwidth_share"], unknown["matrix_share"]) == (None, None)


def test_ratios_are_those_of_each_round() -> None:
    rows = {"minillm": {"load_s": 1, "peak_rss_gb": 3}, "peer": {"load_s": 4, "peak_rss_gb": 2}}
    (found,) = ratios(ROUNDS, rows)
    assert found == {"against": "peer", "decode": (2 + 2) / 2, "prefill": (2 + 1) / 2, "load": 0.25, "peak_rss": 1.5}
    rows["peer"]["peak_rss_gb"] = None
    assert next(iter(ratios(ROUNDS, rows)))["peak_rss"] is None


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 6), (7, 0), (5, 3), (4, 9)])
def test_what_attention_sees(tokens: int, past: int) -> None:
    """Pairs of a query and a key, counted, in layers with a window of 4 and without one."""
    values = {**SHAPES["qwen3-0.6b"], "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    spec, _, _ = families.resolve({**values, "num_hidden_layers": 3})
    pairs = sum(min(position + 1, window) for window in (99, 4, 4) for position in range(past, past + tokens))
    assert attention_flops(spec, tokens, past) == 2 * 16 * pairs * 2 * 128
    seen = past + tokens
    assert cached_values_seen(spec, seen) == 2 * 8 * 128 * (seen + 2 * min(seen, 4))
