"""What is learnt of a model whose layers several ranks share is what one process learns: gradients, their norm, and the
parameters behind a step, of the model or of an adapter. And no sum can be left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from minillm import quantize
from minillm.adapters.config import ALL, AdapterConfig
from minillm.hub import DEMO
from minillm.model.decoder import Decoder
from minillm.ops import ranks as over
from minillm.parallel import gradients
from minillm.parallel import kept as keeping
from minillm.parallel import split as splitting
from minillm.parallel.share import Share
from minillm.spec import Decoder as Spec
from minillm.tune import learner, split
from minillm.tune.masking import Example
from minillm.tune.objectives import NextToken
from minillm.tune.optimizers import Optimizer, Update
from minillm.tune.packing import collated
from minillm.tune.team import ALONE, Team
from tests.helpers.specs import build, random_tokens, uncut
from tests.parallel.drawn import saved, share, splits
from tests.parallel.threads import Thread, in_threads

AGREES = 1e-5  # of a gradient, times the largest of all; 4e-6 were seen
ROUNDED = 1e-5  # of a norm, relative; of values behind a step, absolute
# AdamW divides by how large a gradient is, and some are zero but for rounding (a bias of keys): below this nothing.
EPS = 1e-3
IDS = [[3, 17, 5, 60, 41, 8, 2, 33, 12, 7, 7, 21], [9, 1, 80, 4, 5, 66, 11]]
BATCH = collated([[Example(ids, [at > 1 for at in range(len(ids))], line)] for line, ids in enumerate(IDS)])
Grads = dict[str, Tensor]


class OfThreads(split.Split):
    """Ranks that are threads."""

    def total(self, *values: float) -> list[float]:
        return [each / self.count for each in self.splits.summed(torch.tensor(values)).tolist()]  # type: ignore[attr-defined]


def learns(model: Decoder) -> dict[str, nn.Parameter]:
    named = {name: each for name, each in model.named_parameters() if not name.endswith(learner.NEVER)}
    for each in named.values():
        each.requires_grad_(True)
    return named


def back(loss: Tensor, team: Team, named: Mapping[str, nn.Parameter]) -> tuple[Grads, float]:
    """The gradients here, and the norm of all."""
    loss.backward()
    team.gathered(named)
    return {name: each.grad.clone() for name, each in named.items() if each.grad is not None}, team.norm(named)


def apart(team: OfThreads, found: tuple[Grads, float], expected: tuple[Grads, float]) -> tuple[float, float]:
    """How far gradients of a rank are from those of one process, and the norm."""
    largest, most = max(float(each.abs().max()) for each in expected[0].values()), 0.0
    for name, grad in found[0].items():
        whole = expected[0].get(name)
        wanted = torch.zeros(()) if whole is None else team.owns[name].cut(whole)
        most = max(most, float((grad - wanted).abs().max()) / largest)
    return most, abs(found[1] / expected[1] - 1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])
@given(splits())
def test_gradients_are_those_of_one_process(drawn: tuple[Spec, int, int]) -> None:
    spec, ranks, thin = drawn
    model, tokens = build(spec), random_tokens(2, 9)
    with torch.no_grad():
        uncut(model, tokens)  # no choice of an expert is as good as a tie
    named = learns(model)
    expected = back(model.loss(tokens), ALONE, named)

    def of(rank: Thread) -> tuple[float, float]:
        team, mine = OfThreads(rank), share(model, rank)  # type: ignore[arg-type]
        team.part = Share(spec, str, keeping.kept(spec, ranks, rank.rank))
        return apart(team, back(mine.loss(tokens), team, team.share(mine, learns(mine))), expected)

    with patch.object(splitting, "THIN", thin):
        for far, norm in in_threads(ranks, of):
            assert far <= AGREES
            assert norm <= ROUNDED


def taught(folder: Path, team: Team, adapter: bool) -> tuple[tuple[Grads, float], Grads]:
    """What goes back in a step, and what is there behind it, in the rank that leads."""
    llm = team.load(path=folder, dtype="float32", device="cpu", kernels="training")
    made = team.attach(llm, AdapterConfig(3, 6, ALL, init_lora_weights=False), 1) if adapter else None
    named = team.share(llm.model, made.named() if made else dict(learner.whole(llm).named))
    objective = NextToken(0.1 if any(".ffn.router." in name for name in named) else 0.0)
    found = back(objective(llm.model, BATCH) / objective.count(BATCH), team, named)
    Optimizer(dict(named), Update(eps=EPS)).step(1e-2, 1)
    whole, trained = team.whole(llm.model), getattr(team, "adapter", None) or made
    values = trained.named().items() if trained else whole.named_parameters()
    return found, {name: each.detach() for name, each in values}


def far(folder: Path, ranks: int, adapter: bool = False) -> tuple[float, float, float]:
    """How far ranks are from one process: in gradients, their norm, and what they have learnt."""
    expected, values = taught(folder, ALONE, adapter)

    def of(rank: Thread) -> tuple[float, float, float]:
        team = OfThreads(rank)  # type: ignore[arg-type]
        found, made = taught(folder, team, adapter)
        moved = max(float((made[name] - each).abs().max()) for name, each in values.items()) if team.leads else 0.0
        return *apart(team, found, expected), moved

    return tuple(map(max, zip(*in_threads(ranks, of), strict=True)))  # type: ignore[return-value]


# By what is summed, or is not: a family that stands for it, and over how many ranks.
RULES = {
    "kv heads on two ranks each": ("llama", 4),
    "norms of q and k": ("qwen3", 2),
    "one norm over all heads": ("olmo2", 2),
    "head and embedding in one, norms of sums": ("gemma3", 2),
    "routers, with a loss for balance": ("qwen3_moe", 2),
    "latents": ("deepseek_v3", 2),
    "layers side by side, biases": ("phi", 2),
    "parts that see a mix of streams": ("glm5_next", 2),
    "a second product over all channels": ("jamba-dense", 2),
    "products beside attention and feed-forward": ("gemma3n", 2),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_that_of_one_process(rule: str, tmp_path: Path) -> None:
    """Of all weights, and of an adapter."""
    row, ranks = RULES[rule]
    saved(tmp_path, row)
    for adapter in (False, True):
        grads, norm, values = far(tmp_path, ranks, adapter)
        print(f"{row} over {ranks} ranks, {'an adapter' if adapter else 'all'}: {grads:.1e} {norm:.1e} {values:.1e}")
        assert grads <= AGREES
        assert norm <= ROUNDED
        assert values <= ROUNDED


def test_a_step_of_blocks_that_layers_share(tmp_path: Path) -> None:
    """Of an adapter the gradients alone: their rounding is divided by how small some of them are."""
    saved(tmp_path, "zamba2", rms_norm_eps=0.5)
    grads, norm, values = far(tmp_path, 2)
    assert grads <= AGREES
    assert max(norm, values) <= ROUNDED
    grads, norm, _ = far(tmp_path, 2, adapter=True)
    assert grads <= AGREES
    assert norm <= ROUNDED


def test_an_adapter_beside_integers(tmp_path: Path) -> None:
    """Which each rank reads of a folder, cut between their groups."""
    quantize.main(["--weights", str(DEMO), "--quantize", "int4", "--output", str(tmp_path / "made")])
    grads, norm, values = far(tmp_path / "made", 2, adapter=True)
    assert grads <= AGREES
    assert max(norm, values) <= ROUNDED


def nothing_back(self: gradients.Several, x: Tensor) -> Tensor:
    return x


def mean(x32: Tensor, ranks: Any) -> Tensor:
    """`ops.ranks.mean` whose sums are not summed on the way back."""
    sums = ranks.total(torch.stack((x32.sum(-1), x32.new_full(x32.shape[:-1], x32.shape[-1])), dim=-1))
    return sums[..., :1] / sums[..., 1:]


def twice(self: gradients.Several, y: Tensor) -> Tensor:
    return self._crosses(y, self.summed, lambda dy: 2 * dy)


def own_alone(part: Tensor, targets: Tensor, first: int, ranks: Any) -> Tensor:
    """`ops.ranks.cross_entropy` over the part that is here."""
    place, end = targets - first, part.shape[-1]
    own = part.gather(-1, place.clamp(0, end - 1)[:, None])[:, 0]
    return (part.logsumexp(-1) - own * ((place >= 0) & (place < end))).sum()


@pytest.mark.parametrize(
    ("rule", "adapter", "owner", "name", "other"),
    [
        ("norms of q and k", False, gradients.Several, "entered", nothing_back),
        ("norms of q and k", False, gradients.Several, "total", twice),
        ("norms of q and k", False, split, "PARTED", re.compile("never")),
        ("norms of q and k", False, split.Split, "_alike", lambda self, name: 1),
        ("norms of q and k", False, split.Split, "norm", lambda self, named: 1.0),
        ("routers, with a loss for balance", False, split, "PARTED", re.compile(r"(?!.*router)")),
        ("routers, with a loss for balance", False, gradients.Several, "alike", nothing_back),
        ("latents", False, split, "PARTED", re.compile(r"(?!.*kv_down)")),
        ("kv heads on two ranks each", False, split, "PARTED", re.compile(r"(?!.*qkv)")),
        ("kv heads on two ranks each", True, split.Split, "_summed", lambda self, values: dict(values)),
        ("one norm over all heads", False, over, "mean", mean),
        ("head and embedding in one, norms of sums", False, "minillm.model.decoder", "cross_entropy", own_alone),
        ("layers side by side, biases", False, keeping, "_once", lambda rank: keeping.Kept()),
    ],
)
def test_no_sum_can_be_left_out(
    rule: str, adapter: bool, owner: Any, name: str, other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, ranks = RULES[rule]
    saved(tmp_path, row)
    if isinstance(owner, str):
        monkeypatch.setattr(f"{owner}.{name}", other)
    else:
        monkeypatch.setattr(owner, name, other)
    grads, norm, values = far(tmp_path, ranks, adapter)
    assert grads > 10 * AGREES or norm > 10 * ROUNDED or values > 10 * ROUNDED
