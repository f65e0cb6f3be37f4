"""Indexers against transformers: the texts are longer than what an indexer leaves, which the rows of `tail_rows.py` see
to. Here: what is below that, what of an indexer matters, ties, and which layers have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import minillm
from minillm.families import resolve
from minillm.llm import LLM
from minillm.model import indexer
from minillm.ops import sparse
from minillm.report.examine import explain
from minillm.spec import KV, MLA, Decoder
from tests.conftest import shared
from tests.helpers import tiny

ROWS = {"deepseek_v32": 6, "glm_moe_dsa": 6, "hy_v4": 6, "minimax_m3-indexed": 9}  # how many keys each leaves
LENGTH = 40


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, LLM]]:
    found = {}
    for row in ROWS:
        folder = tmp_path_factory.mktemp("indexed")
        found[row] = tiny.save(folder, *tiny.ROWS[row]), minillm.load(folder, dtype="float32")
    return found


def off(pair: tuple[Any, LLM]) -> Tensor:
    """How far each position's logits are off, `[T]`."""
    theirs, llm = pair
    tokens = tiny.tokens(97, 1, LENGTH, seed=2)
    with torch.no_grad():
        return (llm.model(tokens) - tiny.logits(theirs, tokens)).abs().amax(-1)[0]


def dense(spec: Decoder) -> Decoder:
    """Without indexers."""
    layers = []
    for layer in spec.layers:
        made: Any = layer.attention
        made = replace(made, indexer=None) if isinstance(made, MLA) else replace(made, kv=KV())
        layers.append(replace(layer, attention=made))
    return replace(spec, layers=tuple(layers))


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_all_keys_are_left_as_long_as_there_are_no_more(row: str, loaded: dict[str, tuple[Any, LLM]]) -> None:
    """Up to there the model is the dense one, and the context does not end there."""
    theirs, llm = loaded[row]
    assert llm.spec.context == 128
    plain = minillm.model.decoder.skeleton(dense(llm.spec), torch.float32)
    held = dict(llm.model.named_parameters())
    plain.load_state_dict({name: held[name] for name, _ in plain.named_parameters()}, assign=True)
    tokens = tiny.tokens(97, 1, LENGTH, seed=2)
    difference = (plain(tokens) - tiny.logits(theirs, tokens)).abs().amax(-1)[0]
    assert difference[: ROWS[row]].max() <= 2e-5
    assert difference[ROWS[row] :].max() > 1e-3


def without_relu(q: Tensor, weights: Tensor, k: Tensor) -> Tensor:
    each = q.float() @ k.float().transpose(-1, -2).unsqueeze(1)
    return (weights.float().unsqueeze(-2) @ each).squeeze(-2)


def without_weights(q: Tensor, weights: Tensor, k: Tensor) -> Tensor:
    return F.relu(q.float() @ k.float().transpose(-1, -2).unsqueeze(1)).sum(-2)


def turned_behind(asked: Callable[..., Any]) -> Callable[..., Any]:
    """The last values of each head turn."""

    def broken(self: Any, x: Tensor, latent: Tensor, turn: Callable[..., Tensor]) -> Any:
        return asked(self, x, latent, lambda heads, layout: turn(heads.flip(-1), layout).flip(-1))

    return broken


def own_choice(of_rows: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that should take another's choice sees all keys."""

    def broken(attention: Any, asked: Any, step: Any, cache: Any) -> Any:
        return of_rows(attention, asked, replace(step, chosen={}), cache)

    return broken


def fewer(best: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda scores, count: best(scores, count - 1)


MISTAKES: dict[str, tuple[str, Any, str, Any]] = {
    "no relu": ("deepseek_v32", sparse, "key_scores", lambda _: without_relu),
    "all heads alike": ("deepseek_v32", sparse, "key_scores", lambda _: without_weights),
    "the last values turned": ("deepseek_v32", indexer.Indexer, "asked", turned_behind),
    "one key fewer": ("deepseek_v32", sparse, "best", fewer),
    "one block fewer": ("minimax_m3-indexed", sparse, "best", fewer),
    "a shared choice not taken": ("glm_moe_dsa", minillm.model.mla, "of_rows", own_choice),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake: str, loaded: dict[str, tuple[Any, LLM]], monkeypatch: pytest.MonkeyPatch) -> None:
    row, owner, name, broken = MISTAKES[mistake]
    assert off(loaded[row]).max() <= 2e-5
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    assert off(loaded[row]).max() > 1e-3


@torch.no_grad()
def test_a_layer_that_follows_another_must_not_choose_itself(loaded: dict[str, tuple[Any, LLM]]) -> None:
    """With the indexer of the layer before, moved into the one that shares its choice."""
    theirs, _ = loaded["glm_moe_dsa"]
    tokens = tiny.tokens(97, 1, LENGTH, seed=2)
    expected, layer = theirs(tokens, use_cache=False).logits, theirs.model.layers[1].self_attn
    assert layer.indexer is None
    layer.indexer = theirs.model.layers[0].self_attn.indexer
    assert (theirs(tokens, use_cache=False).logits - expected).abs().max() > 1e-3
    layer.indexer = None


@torch.no_grad()
def test_of_equal_scores_the_first_counts(tmp_path: Path) -> None:
    """transformers leaves it to torch.topk, which promises no order. With one head most scores are 0: both leave as
    many keys, of the same scores, and here the earliest."""
    family, values = tiny.ROWS["deepseek_v32"]
    theirs = tiny.save(tmp_path, family, {**values, "index_n_heads": 1, "num_hidden_layers": 1})
    llm, tokens, found = minillm.load(tmp_path, dtype="float32"), tiny.tokens(97, 1, LENGTH), []
    theirs.model.layers[0].self_attn.indexer.register_forward_hook(lambda *call: found.append(call[-1]))
    tiny.logits(theirs, tokens)
    scores: list[Tensor] = []
    plain = sparse.best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "best", lambda each, count: scores.append(each) or plain(each, count))
        llm.model(tokens)
    chosen, tied = plain(scores[0], 6)[0], 0
    for t in range(6, LENGTH):
        row, other = scores[0][0, t], found[0][0, t].long()
        own = chosen[t].nonzero().flatten()
        assert (row[own].sort().values - row[other].sort().values).abs().max() <= 1e-6
        tied += int(
            (row[: t + 1] == 0).sum() > 1 and (row[own] == 0).any() and own.tolist() != other.sort().values.tolist()
        )
        zeros = (row == 0).nonzero().flatten()
        assert own[row[own] == 0].tolist() == zeros[: int((row[own] == 0).sum())].tolist()
    assert tied > 0


def test_active_parameters() -> None:
    """The published figure is DeepSeek-V3's: that of the model without its indexers, which it names."""
    found, plain = (
        explain(shared(f"real-configs/{name}"))["active_parameter_count"]
        for name in ("nvidia__DeepSeek-V3.2-NVFP4", "deepseek-ai__DeepSeek-V3")
    )
    each = 64 * 128 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168  # q, k, its norm, weights
    assert found == plain + 61 * each


def lenders(**values: Any) -> list[int | None]:
    decoder = resolve({"model_type": "glm_moe_dsa", "num_hidden_layers": 8, **values})[0]
    return [each.indexer if isinstance(each.indexer, int) else None for each in decoder.attentions]


def test_which_layers_have_an_indexer() -> None:
    """As transformers reads it: a list, or a pattern of letters, or every n-th layer from one on."""
    every = [None, None, 1, 1, 1, None, 5, 5]
    assert lenders() == [None] * 8
    assert lenders(index_topk_freq=4) == every
    assert lenders(index_topk_freq=4, index_skip_topk_offset=3) == [None, None, None, 2, 2, 2, None, 6]
    assert lenders(index_topk_pattern="FFSSSFSS") == every
    assert lenders(indexer_types=["full" if each is None else "shared" for each in every]) == every


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("glm_moe_dsa", {"indexer_types": ["full"] * 7}, "for each of the 8 layers"),
    ("glm_moe_dsa", {"indexer_types": ["shared"] * 8}, "has shared first"),
    ("glm_moe_dsa", {"index_topk_pattern": "FFXX"}, "full or shared"),
    ("glm_moe_dsa", {"index_topk_pattern": 7}, "full or shared"),
    ("glm_moe_dsa", {"index_topk_pattern": [["full"]] * 8}, "full or shared"),
    ("glm_moe_dsa", {"index_skip_topk_offset": "3"}, "a whole number"),
    ("glm_moe_dsa", {"index_topk": 0}, "index_topk is 0"),
    ("hy_v4", {"swiglu_limit": 0.0}, "swiglu_limit is 0.0, expected a number from"),
    ("deepseek_v32", {"index_head_dim": 32}, "less than the 64 values that turn"),
    ("deepseek_v32", {"q_lora_rank": None}, "q_lora_rank is null"),
    ("minimax_m3", {"layer_types": ["minimax_m3_sparse"] * 8, "index_n_heads": 2}, "number of kv heads, 4"),
    ("minimax_m3", {"layer_types": ["sparse"] * 8}, "full_attention or minimax_m3_sparse"),
    ("minimax_m3", {"layer_types": ["minimax_m3_sparse"] * 8, "index_local_blocks": 17}, "from 0 to 16"),
    ("minimax_m3", {"layer_types": ["minimax_m3_sparse"] * 8, "index_head_dim": 32}, "less than the 64 values"),
    ("minimax_m3", {"sparse_attention_config": {"sparse_score_type": "mean"}}, "sparse_score_type is .mean"),
    ("minimax_m3", {"sparse_attention_config": [1]}, "expected an object"),
    (
        "minimax_m3",
        {"sparse_attention_config": {"sparse_attention_freq": [1] * 8, "sparse_disable_index_value": [0] * 8}},
        "indexers with values",
    ),
]


@pytest.mark.parametrize(("family", "values", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_cannot_be(family: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve({"model_type": family, "num_hidden_layers": 8, **values})


def test_the_published_spelling_of_blocks() -> None:
    section = {"use_sparse_attention": True, "sparse_index_dim": 96, "sparse_num_index_heads": 4,
               "sparse_topk_blocks": 5, "sparse_block_size": 32, "sparse_local_block": 2,
               "sparse_attention_freq": [0, 1, 1]}  # fmt: skip
    decoder = resolve({"model_type": "minimax_m3", "num_hidden_layers": 3, "sparse_attention_config": section})[0]
    made = [each.kv.indexer for each in decoder.attentions]
    assert made[0] is None
    assert made[1] == made[2]
    assert (made[1].head_dim, made[1].size, made[1].top_k, made[1].local) == (96, 32, 5, 2)
