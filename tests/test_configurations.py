"""hypothesis draws configurations inside each family's legal space; each must match transformers through disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minillm
from minillm.cache import Cache

BUDGET = 2e-5


def ropes(theta: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, Any]]:
    factor = st.floats(1.0, 8.0)
    original = st.integers(8, 64)
    return st.one_of(
        st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": theta}),
        st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factor, "rope_theta": theta}),
        st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": factor, "rope_theta": theta}),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("llama3"),
                "factor": factor,
                "low_freq_factor": st.floats(0.5, 2.0),
                "high_freq_factor": st.floats(2.5, 8.0),
                "original_max_position_embeddings": original,
                "rope_theta": theta,
            }
        ),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("yarn"),
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": st.floats(4.0, 40.0),
                "beta_slow": st.floats(0.5, 3.0),
                "truncate": st.booleans(),
                "rope_theta": theta,
            }
        ),
    )


@st.composite
def configurations(draw: st.DrawFn, family: str) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    layers = draw(st.integers(1, 3))
    config: dict[str, Any] = {
        "vocab_size": draw(st.integers(11, 130)),
        "hidden_size": heads * draw(st.integers(2, 10)) * 2,
        "intermediate_size": draw(st.integers(3, 70)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": draw(st.integers(20, 80)),
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": draw(ropes(st.floats(20.0, 1e6))),
    }
    if family != "qwen2":
        config["head_dim"] = draw(st.integers(2, 10)) * 2
    if family == "llama":
        config["mlp_bias"] = draw(st.booleans())
    if family in ("llama", "qwen3"):
        config["attention_bias"] = draw(st.booleans())
    if family == "mistral":
        config["sliding_window"] = draw(st.none() | st.integers(1, 30))
    if family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = draw(st.booleans())
        config["sliding_window"] = draw(st.integers(1, 30))
        config["max_window_layers"] = draw(st.integers(0, layers))
    return config


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@torch.no_grad()
def test_drawn_configuration(family: str, data: st.DataObject) -> None:
    config = data.draw(configurations(family))
    with tempfile.TemporaryDirectory() as folder:
        theirs = tiny.save(Path(folder), family, config, seed=data.draw(st.integers(0, 99)))
        llm = minillm.load(folder)
        tokens = tiny.tokens(config["vocab_size"], 2, data.draw(st.integers(1, 48)))
        expected = tiny.logits(theirs, tokens)
        assert (llm.model(tokens) - expected).abs().max() <= BUDGET
        if tokens.shape[1] > 1:  # and cut in two, through the cache
            cut = data.draw(st.integers(1, tokens.shape[1] - 1))
            cache = Cache(llm.spec, 2, tokens.shape[1], torch.float32)
            cache.prompt_length = tokens.shape[1]
            halves = [llm.model(piece, cache) for piece in tokens.split([cut, tokens.shape[1] - cut], dim=1)]
            assert (torch.cat(halves, 1) - expected).abs().max() <= BUDGET
