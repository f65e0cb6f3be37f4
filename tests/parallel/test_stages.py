"""A ring of stages is the model, wherever it is cut; and each has layers by its memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import generate as command
from minillm.engine.batching import passes
from minillm.engine.batching.passes import Mixed, Part, Single
from minillm.hub import DEMO
from minillm.parallel.stages import check, lacks, local, shares, stated
from minillm.report.examine import examine
from minillm.spec import GQA, KV, Decoder, GatedMLP, Layer, Norm, Rope
from tests.conftest import exit_code, shared
from tests.helpers import tiny
from tests.parallel.threads import Stage, in_threads, led, share

FULL, WINDOW, STATE = "full_attention", "sliding_attention", "linear_attention"
KINDS = {"gpt_oss": [WINDOW, FULL] * 2, "qwen3_next": [STATE, FULL] * 2}
PROMPTS = ["Once upon a time", "There was a dog who"]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 20), st.data())
def test_no_cut_is_better(layers: list[int], ends: int, data: st.DataObject) -> None:
    """Of all cuts none has a fullest stage that is less full."""
    count = data.draw(st.integers(1, min(len(layers), 4)))
    free = data.draw(st.lists(st.integers(1, 30), min_size=count, max_size=count))

    def fullest(spans: list[tuple[int, int]]) -> float:
        taken = [sum(layers[first:end]) for first, end in spans]
        return max((each + ends * (at == 0)) / room for at, (each, room) in enumerate(zip(taken, free, strict=True)))

    found = shares(layers, ends, free)
    assert [each for first, end in found for each in range(first, end)] == [*range(len(layers))]
    cuts = itertools.combinations(range(1, len(layers)), count - 1)
    best = min(fullest([*itertools.pairwise((0, *cut, len(layers)))]) for cut in cuts)
    assert fullest(found) == pytest.approx(best)


@pytest.mark.parametrize("layers", ["1,3", "3,1", "2,2", "1,1,2", "1,1,1,1"])
def test_any_cut_is_one(layers: str) -> None:
    """Greedy, drawn, in a batch and guessed tokens; each stage reads its own layers, the first the rest."""
    how = {"max_new_tokens": 12, "ignore_eos": True}
    asked = [{"temperature": 0}, {"temperature": 0.8, "seed": 7}, {"temperature": 0, "prompt_lookup": 2}]

    def texts(llm: minillm.LLM) -> list[list[int]]:
        return [each.token_ids for ask in asked for each in llm.generate(PROMPTS, **how, **ask)]

    one = minillm.load(DEMO, dtype="float32", device="cpu", kernels="reference")
    count = layers.count(",") + 1
    assert led(DEMO, count, texts, Stage, layers=layers) == texts(one)
    sizes = in_threads(count, lambda rank: share(DEMO, rank, layers=layers).model, Stage)
    own = sum(each.numel() for each in one.model.norm.parameters())
    whole = sum(each.numel() for each in one.model.parameters())
    assert sum(each.numel() for model in sizes for each in model.parameters()) == whole + (count - 1) * own


def test_pieces_of_a_prompt_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes through the stages by itself, behind what is decoded meanwhile."""
    prompts = ["Once upon a time, there was a dog who", "Lily", "There was"]
    how = {"max_new_tokens": 6, "ignore_eos": True, "temperature": 0}

    def texts(llm: minillm.LLM) -> list[list[int]]:
        return [each.token_ids for each in llm.generate(prompts, **how)]

    expected = texts(minillm.load(DEMO, dtype="float32", device="cpu", kernels="reference"))
    monkeypatch.setattr(passes, "PIECE", 3)
    assert led(DEMO, 3, texts, Stage, layers="1,2,1") == expected


def test_pieces_are_all_of_a_pass() -> None:
    single = Single(torch.tensor([5, 6]), torch.tensor([8, 3]), {None: torch.zeros(2, 1)}, (9, 4))
    parts = Part([1, 2, 3, 4, 5], 7, {}), Part([9], 0, {})
    found = Mixed(single, parts, (9, 4, 8, 9, 10, 11, 12, 1)).pieces(2)
    told = [[(part.ids, part.first) for part in each.parts] for each in found]
    assert told == [[], [([1, 2], 7)], [([3, 4], 9)], [([5], 11)], [([9], 0)]]
    assert [each.single.tokens.tolist() for each in found] == [[5, 6], [], [], [], []]
    assert [each.lengths for each in found] == [(9, 4), (8, 9), (10, 11), (12,), (1,)]
    assert found[1].single.tables[None].shape == (0, 1)
    assert Mixed(single, parts, ()).pieces(5)[0].parts == parts


@pytest.mark.parametrize("row", ["llama", "deepseek_v3", "gpt_oss", "qwen3_next"])
def test_half_precision_is_the_same_bits(row: str, tmp_path: Path) -> None:
    """Nothing is summed otherwise; windows, latents and states are in both stages."""
    family, changed = tiny.ROWS[row]
    tiny.save(tmp_path, family, {**changed, "num_hidden_layers": 4, "layer_types": KINDS.get(row)})
    how = {"dtype": "bfloat16", "device": "cpu", "kernels": "reference"}
    ids = {"prompt_ids": [3, 17, 5, 60], "max_new_tokens": 12, "ignore_eos": True, "temperature": 0, "logprobs": 1}
    one = minillm.load(tmp_path, **how).generate(**ids)
    found = led(tmp_path, 2, lambda llm: llm.generate(**ids), Stage, **how, layers="2,2")
    assert found.token_ids == one.token_ids
    assert found.scores == one.scores


def test_a_larger_machine_takes_more() -> None:
    """Of 61 like layers beside embedding and head that are as large as two: 120 of 64 and 510 of 256."""
    found = shares([10] * 61, 20, [64, 256])
    assert [end - first for first, end in found] == [10, 51]
    assert stated("10, 51", 61) == found


def test_each_stage_has_layers_of_all_kinds() -> None:
    """Where the memory alone would give the first stage one layer, with a window only."""
    path = shared("real-configs/google__gemma-3-27b-it")
    spec = examine(path / "config.json").spec
    assert spec is not None
    layers, ends = [1] * len(spec.layers), 40
    assert shares(layers, ends, [1, 1])[0] == (0, 11)
    assert lacks(spec, (0, 5)) is not None
    assert lacks(spec, (0, 6)) is None
    assert shares(layers, 80, [1, 1])[0] == (0, 1)
    found = shares(layers, 80, [1, 1], lambda span: lacks(spec, span) is None)
    assert found == [(0, 6), (6, len(layers))]
    check(spec, found)
    with pytest.raises(ValueError, match="--stages is 40, and the layers of this model cannot be cut into as many"):
        shares(layers, 0, [1] * 40, lambda span: lacks(spec, span) is None)


def test_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--stages is 5, and the model has 4 layers"):
        shares([1] * 4, 0, [1] * 5)
    for text in ("1,2", "0,4", "1,x", "4,"):
        with pytest.raises(ValueError, match=f"--layers is '{text}', expected numbers of layers of each stage, 4 in"):
            stated(text, 4)
    for flags, message in (
        (["--layers", "1,3", "--stages", "3"], "--stages is 3 and --layers has 2 numbers"),
        (
            ["--ranks", "512", "--stages", "3"],
            "512 ranks in each of 3 stages are 1536 processes, at most 1024",
        ),
        (["--layers", "4"], "--layers is '4', expected numbers of layers of several stages"),
        (["--layers", ""], "--layers is '', expected"),
        (["--stages", "0"], "--stages is 0, it must be from 1 to 1024"),
        (["--rank-timeout", "3"], "--rank-timeout needs several processes"),
    ):
        assert exit_code(command.main, ["--prompt", "x", *flags]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    for numbers, message in (
        ({"ranks": 0}, "--ranks is 0"),
        ({"stages": -1}, "--stages is -1"),
        ({"layers": "4"}, "4"),
    ):
        with pytest.raises(ValueError, match=message):
            minillm.load(**numbers)


@pytest.mark.parametrize(
    ("name", "first", "message"),
    [
        ("google__gemma-4-E2B-it", 10, "given more than hidden states"),
        ("google__gemma-3-4b-it", 4, "layers 0 to 3 are not of all kinds"),
    ],
)
def test_where_a_model_cannot_be_cut(name: str, first: int, message: str) -> None:
    spec = examine(shared(f"real-configs/{name}")).spec
    with pytest.raises(ValueError, match=message):
        check(spec, [(0, first), (first, len(spec.layers))])


def test_keys_of_another_layer() -> None:
    """Those that are read are of the same stage, by its own number."""
    norm, ffn = Norm(1e-5), GatedMLP(8)
    makes, reads = (Layer(norm, GQA(1, 1, 8, Rope(8, 100.0), kv=kv), norm, ffn) for kv in (KV(), KV(layer=1)))
    spec = Decoder(3, 8, (makes, makes, makes, reads), norm, False, context=16)
    found = local(spec, [(0, 1), (1, 4)], 1)
    assert [layer.attention.kv.layer for layer in found.layers] == [None, None, 0]
    with pytest.raises(ValueError, match="layer 3 reads the keys of layer 1, of another stage"):
        local(spec, [(0, 2), (2, 4)], 1)
