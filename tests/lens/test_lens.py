"""The lens: what it says of a pass is what the model did, for every family, and the model is left as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minillm
from minillm import hub, perplexity
from minillm.engine.sampling import Sampling
from minillm.lens import __main__ as lens
from minillm.lens import forward, sampling
from minillm.lens.forward import Pass
from minillm.model.decoder import Decoder
from minillm.spec import Attention, Chunk
from minillm.text import pieces
from minillm.text.tokenizer import Tokenizer
from tests.conftest import shared
from tests.helpers import tiny

LENGTH = 12  # more than every window but the widest


def saved(folder: Path, row: str) -> minillm.LLM:
    tiny.save(folder, *tiny.ROWS[row])
    return minillm.load(folder, dtype="float32", kernels="reference")


def behind_each_layer(model: Decoder, tokens: Tensor, seen: Pass) -> Tensor:
    """The residual stream by what is added to it, in this order, bit for bit; of several streams, where that is no sum,
    by models that end with each layer."""
    layers, total = model.layers, seen.residual[:-1] + seen.attended + seen.fed
    for index, layer in enumerate(layers):
        if model.streams is not None:
            model.layers = layers[: index + 1]
            total[index] = model.hidden(tokens)
            continue
        if layer.per_layer is not None:
            total[index] += layer.per_layer(total[index : index + 1], model.step(tokens, None))[0]
        if layer.scale is not None:
            total[index] *= layer.scale
    model.layers = layers
    return total


COMPRESSED = [row for row in tiny.ROWS if row.startswith("deepseek_v4")]


@pytest.mark.parametrize("row", COMPRESSED[:1])
def test_no_map_of_blocks(row: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="look at blocks of positions as one"):
        lens.report(saved(tmp_path, row), [1, 2, 3])


@pytest.mark.parametrize("row", [row for row in tiny.ROWS if row not in COMPRESSED])
@torch.no_grad()
def test_every_family(row: str, tmp_path: Path) -> None:
    llm = saved(tmp_path, row)
    tokens = tiny.tokens(97, 1, LENGTH)
    before, ops = llm.model(tokens), [getattr(module, "ops", None) for module in llm.model.modules()]
    found, seen = lens.report(llm, tokens[0].tolist())
    assert torch.equal(llm.model.logits(seen.residual[-1:]), before)
    assert torch.equal(behind_each_layer(llm.model, tokens, seen), seen.residual[1:])
    for weights, layer in zip(seen.attention, llm.spec.layers, strict=True):
        attention = next((each for each in layer.mixers if isinstance(each, Attention)), None)
        if attention is None:
            assert weights.shape == (0, LENGTH, LENGTH)
            continue
        assert weights.shape == (attention.num_heads, LENGTH, LENGTH)
        at = torch.arange(LENGTH)
        first = at - at % window if isinstance(window := attention.window, Chunk) else at + 1 - (window or LENGTH)
        visible = (at <= at[:, None]) & (at >= first[:, None])
        assert (weights[:, ~visible] == 0).all()
        assert (weights[:, visible] > 0).all()
        if getattr(attention, "sinks", False):
            assert (weights.sum(-1) < 1).all()
        else:  # a softmax divides by a sum of LENGTH terms, each rounded
            assert (weights.sum(-1) - 1).abs().max() <= LENGTH * torch.finfo(torch.float32).eps
    # 6 digits are written, and each of up to 97 terms of a softmax is rounded to 2^-24
    expected = before[0].double().softmax(-1).max(-1).values
    for chances in (found["lens"]["probability"][-1], [each[0] for each in found["distribution"]["probabilities"]]):
        assert (torch.tensor(chances).double() / expected - 1).abs().max() <= 1e-5
    assert torch.equal(llm.model(tokens), before)
    assert [getattr(module, "ops", None) for module in llm.model.modules()] == ops
    assert not any(module._forward_hooks for module in llm.model.modules())


@pytest.mark.parametrize(
    "row", ["llama", "gemma2", "gpt_oss", "mistral-window", "deepseek_v3", "qwen3_moe", "gpt_neox", "gemma4-experts"]
)
@torch.no_grad()
def test_against_the_reference(row: str, tmp_path: Path) -> None:
    """Attention maps and hidden states as transformers returns them, fp32."""
    tokens, llm = tiny.tokens(97, 1, LENGTH), saved(tmp_path, row)
    theirs = tiny.reference(tmp_path)(tokens, output_attentions=True, output_hidden_states=True)
    seen = forward.look(llm.model, tokens[0].tolist())
    for own, their in zip(seen.attention, theirs.attentions, strict=True):
        assert (own - their[0]).abs().max() <= 5e-6
    for own, their in zip(seen.residual[:-1], theirs.hidden_states[:-1], strict=True):  # the last is behind the norm
        assert (own - their[0]).abs().max() <= 2e-5 * their.abs().max()


@torch.no_grad()
def test_predictions_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Position by position in fp64, whether the logits come at once or in pieces."""
    llm = saved(tmp_path, "gemma2")
    seen = forward.look(llm.model, tiny.tokens(97, 9, seed=3).tolist())
    chances = torch.stack([llm.model.logits(level[None])[0].double().softmax(-1) for level in seen.residual])
    for size in (forward.LOGITS_AT_ONCE, 2 * 97):
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", size)
        found = forward.predictions(llm.model, seen, 4)
        for at in range(9):
            final = chances[-1, at]
            order = final.argsort(descending=True).tolist()
            assert found["distribution"]["ids"][at].tolist() == order[:4]
            assert found["distribution"]["entropy"][at].item() == pytest.approx(_entropy(final), rel=1e-5)
            if at < 8:
                token = int(seen.tokens[at + 1])
                assert found["following"]["rank"][at] == order.index(token) + 1
                assert found["following"]["probability"][at].item() == pytest.approx(final[token].item(), rel=1e-5)
                assert found["following"]["nats"][at].item() == pytest.approx(-math.log(final[token]), rel=1e-5)
            for level, here in enumerate(chances[:, at]):
                own = {key: each[level, at].item() for key, each in found["lens"].items()}
                kl = sum(p * math.log(p / q) for p, q in zip(final.tolist(), here.tolist(), strict=True))
                assert own["kl"] == pytest.approx(kl, rel=1e-4, abs=1e-6)
                assert own["ids"] == here.argmax()
                assert own["probability"] == pytest.approx(here.max().item(), rel=1e-5)
                assert own["entropy"] == pytest.approx(_entropy(here), rel=1e-5)
                assert own["rank"] == here.argsort(descending=True).tolist().index(order[0]) + 1
    assert (found["lens"]["kl"][0] > 0.1).all()


def _entropy(chances: torch.Tensor) -> float:
    return -sum(p * math.log(p) for p in chances.tolist() if p)


def test_the_lowest_id_comes_first_among_equals(tmp_path: Path) -> None:
    """Everywhere, with every logit twice: the distribution, the lens and the sampling name the same token."""
    chances = torch.tensor([[1.0, 3, 2, 3, 2], [0, 0, 0, 0, 0]])
    assert forward.likeliest(chances, 4).tolist() == [[1, 3, 2, 4], [0, 1, 2, 3]]
    assert forward.likeliest(chances, 9).shape == (2, 5)
    llm = saved(tmp_path, "llama")
    head = llm.model.head.weight if llm.model.head is not None else llm.model.embedding.weight
    head.data[48:96] = head.data[:48]
    found, _ = lens.report(llm, tiny.tokens(97, 9, seed=3).tolist(), 4, Sampling(temperature=1.0))
    best = [ids[0] for ids in found["distribution"]["ids"]]
    assert best == found["lens"]["ids"][-1]
    assert all(i < 48 or i == 96 for i in best)
    for ids in found["distribution"]["ids"]:
        assert all(i < 48 or i == 96 or i - 48 in ids[: ids.index(i)] for i in ids)
    assert found["sampling"]["ids"][:4] == found["distribution"]["ids"][-1]


def test_heads_by_hand(tmp_path: Path) -> None:
    """One head that looks at itself, one at the first token and the one before, and one that gives half to a sink."""
    spec = saved(tmp_path, "gpt_oss").spec
    self_ = torch.eye(3)
    spread = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0.25, 0.75, 0]])
    maps = torch.stack([self_, spread, spread / 2])
    found = forward.heads(Pass(*[torch.zeros(0)] * 4, [maps] * len(spec.layers)), spec)[0]
    mixed = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 3
    expected = {
        "entropy": [0, mixed, mixed / 2 + math.log(2)],
        "distance": [0, (1 + 0.25 * 2 + 0.75) / 3, (1 + 0.25 * 2 + 0.75) / 3],
        "first": [0, 1.25 / 2, 1.25 / 4],
        "sink": [0, 0, 0.5],
    }
    assert {key: each.tolist() for key, each in found.items()} == {
        key: pytest.approx(values, abs=1e-6) for key, values in expected.items()
    }


def test_norms_and_one_token(tmp_path: Path) -> None:
    llm = saved(tmp_path, "mixtral")
    found, seen = lens.report(llm, [5])
    assert found["following"] == {"probability": [], "nats": [], "rank": []}
    assert found["heads"]["first"] == [[1.0] * 6] * 3
    parts = {"residual": seen.residual, "attention": seen.attended, "ffn": seen.fed}
    for name, part in parts.items():
        lengths = part.double().square().sum(-1).sqrt()
        assert (torch.tensor(found["norms"][name]).double() / lengths - 1).abs().max() <= 1e-5
    assert found["texts"]["5"] == "#5"  # no tokenizer


def test_surprisals_are_those_of_perplexity() -> None:
    folder = shared("checkpoints/stories-phi3")
    llm = minillm.load(folder, kernels="reference")
    ids = llm.tokenizer.encode("Once upon a time there was a little girl named Lily.")
    found, _ = lens.report(llm, ids)
    assert sum(found["following"]["nats"]) == pytest.approx(perplexity.nats(llm, ids, 64, 64), rel=1e-5)


@pytest.mark.parametrize("name", ["stories260K", "stories-mixtral", "stories-deepseek-v3", "stories-gemma2"])
def test_trained_models_make_up_their_minds(name: str) -> None:
    """Behind the layers of a trained model the distribution comes closer to the last one's."""
    llm = minillm.load(shared(f"checkpoints/{name}"), kernels="reference")
    found, _ = lens.report(llm, llm.tokenizer.encode("Once upon a time there was a little girl named Lily."))
    means = [sum(row) / len(row) for row in found["lens"]["kl"]]
    assert means[0] > means[-2] > means[-1] == 0
    assert set(found["lens"]["rank"][-1]) == {1}


def test_sampling_is_cut_by_cut() -> None:
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    found = sampling.cuts(logits, Sampling(temperature=1.0, top_k=4, top_p=0.85, min_p=0.3), 3)
    assert found["ids"] == [0, 1, 2]
    assert [(step["name"], step["kept"]) for step in found["steps"]] == [
        ("model", 5), ("top_k 4", 4), ("top_p 0.85", 3), ("min_p 0.3", 3),
    ]  # fmt: skip
    assert [step["mass"] for step in found["steps"]] == pytest.approx([1, 0.95, 0.85, 0.85])
    assert found["steps"][1]["probabilities"] == pytest.approx([0.5 / 0.95, 0.2 / 0.95, 0.15 / 0.95])
    # Of two tokens left, 0.71 and 0.29, top-p 0.7 keeps one; of all five it would keep two.
    narrow = sampling.cuts(logits, Sampling(temperature=1.0, top_k=2, top_p=0.7), 3)["steps"]
    assert [step["kept"] for step in narrow] == [5, 2, 1]
    warm = sampling.cuts(logits, sampling.settings("temperature=2"), 5)["steps"]
    weights = [math.sqrt(p) for p in (0.5, 0.2, 0.15, 0.1, 0.05)]
    assert [step["name"] for step in warm] == ["model", "temperature 2"]
    assert warm[1]["probabilities"] == pytest.approx([w / sum(weights) for w in weights])


@pytest.mark.parametrize("text", ["beam=3", "top_k=1.5", "temperature=0", "top_p=2", "top_p", ""])
def test_bad_sampling(text: str) -> None:
    with pytest.raises(ValueError, match=r"--sampling|top_p is"):
        sampling.settings(text)


def test_pieces(tmp_path: Path, stories: Path) -> None:
    """Spaces in front, bytes with and without byte-level BPE, special tokens, ids beyond the vocabulary."""
    tokenizers = {"demo": Tokenizer(hub.DEMO), "stories": Tokenizer(stories)}
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("A cat, 東!\n")
        texts = pieces.texts(tokenizer, ids)
        assert texts[ids[0]] == "<s>"
        bytes_ = [texts[i] for i in ids if texts[i].startswith("<") and texts[i] != "<s>"]
        assert " ".join(each.strip("<>") for each in bytes_) == "E6 9D B1"
        rest = "".join(text for i in ids[1:] if (text := texts[i]) not in bytes_)
        assert rest.removeprefix(" ") == "A cat, !\n"
        assert pieces.texts(tokenizer, [10**6]) == {10**6: "#1000000"}
    assert pieces.texts(None, [3, 3]) == {3: "#3"}
    assert pieces.visible(" a\n\t\x1b[0m") == "·a↵⇥\\x1b[0m"


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "empty"), ([97], "outside the vocabulary"), ([-1], "token id -1"), ([1] * 129, "at most 128")],
)
def test_what_cannot_be_looked_at(ids: list[int], message: str, tmp_path: Path) -> None:
    llm = saved(tmp_path, "llama")
    with pytest.raises(ValueError, match=message):
        lens.report(llm, ids)


def test_maps_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 heads: 10 tokens take 1800 weights."""
    llm = saved(tmp_path, "llama")
    monkeypatch.setattr(forward, "MAX_ATTENTION", 1800)
    _, seen = lens.report(llm, [1] * 10)
    with pytest.raises(ValueError, match="at most 10 can be looked at: 18 heads"):
        lens.report(llm, [1] * 11)
    lens.check_maps(seen)
    monkeypatch.setattr(lens, "MAX_WRITTEN", 1799)
    with pytest.raises(ValueError, match="1,800 weights"):
        lens.check_maps(seen)


def test_what_leaves_the_range_is_said(tmp_path: Path) -> None:
    llm = saved(tmp_path, "llama")
    llm.model.layers[1].ffn.down.weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match="leaves the range"):
        lens.report(llm, [1, 2])
    assert json.dumps(lens.plain({"a": torch.tensor([1 / 3]), "b": [2, "c"]})) == '{"a": [0.333333], "b": [2, "c"]}'
    assert json.dumps(lens.plain(torch.tensor([-0.0, 0.0]))) == "[0.0, 0.0]"


@pytest.mark.parametrize("logit", [math.inf, -math.inf, math.nan])
def test_logits_that_leave_the_range(logit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = saved(tmp_path, "llama")
    logits = llm.model.logits
    monkeypatch.setattr(llm.model, "logits", lambda hidden: logits(hidden).index_fill(-1, torch.tensor(3), logit))
    with pytest.raises(ValueError, match=r"the logits leave the range of torch\.float32; try --dtype float32"):
        lens.report(llm, [1, 2], chosen=Sampling(temperature=0.5, top_p=0.5))


def test_names_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from inside too, and in the Hugging Face cache, where the folder is named after a commit."""
    cached, other = tmp_path / "models--org--a-name/snapshots/0123abc", tmp_path / "snapshots/step-100"
    for folder in (cached, other):
        folder.mkdir(parents=True)
    monkeypatch.chdir(other)
    found = [hub.name_of(folder) for folder in (cached, other, Path())]
    assert found == ["org/a-name", "step-100", "step-100"]
