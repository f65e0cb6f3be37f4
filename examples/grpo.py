"""Reinforcement learning with a reward that a program checks (GRPO; Shao et al., arXiv:2402.03300), on one page.

    python examples/grpo.py --out FOLDER                          the demo learns to begin with a brave hero, unasked
    python examples/grpo.py --out FOLDER --weights PATH --prompts FILE --pattern REGEX

In a round the model answers each of some prompts several times, by the engine that also serves it. An answer is as good
as its reward r is above that of the others to the same prompt,

    A = (r - mean of the group) / (standard deviation of the group + 1e-4)

and each of its tokens becomes likelier or less likely by it, but no more than by a factor of 1 ± clip in a round, and
held near the model as it was before all rounds (p₀, the adapter left out) by an estimate of the divergence, whose
factor w has it be of what the model says now (arXiv:2512.02556):

    loss = mean over tokens of  -min(w A, clamp(w, 1 - clip, 1 + clip) A) + beta w (exp(d) - d - 1)
    w = p / p of the round's beginning,     d = log p₀ - log p

The mean is over all tokens of all answers (as in DAPO, arXiv:2503.14476), so that micro-batches are one batch. At the
end the adapter is in FOLDER, as PEFT has it. `tests/tune/test_trl.py` compares steps with TRL's `GRPOTrainer`.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

import minillm
from minillm import cli
from minillm.adapters.adapter import Adapter
from minillm.adapters.attach import attach
from minillm.adapters.config import ALL, AdapterConfig
from minillm.engine.completion import Result, Timings
from minillm.llm import LLM
from minillm.model.decoder import IGNORED, Decoder
from minillm.tune.masking import Example
from minillm.tune.optimizers import Optimizer, Update
from minillm.tune.packing import Batch, collated
from minillm.tune.state import Progress
from minillm.tune.training import Plan, Run, train
from story_grammar import ANIMALS, NAMES, THINGS, article

Reward = Callable[[str, str], float]  # of what was asked, and an answer
NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Answers(Batch):
    """Of each row how good its answer is, fp32 `[B]`; of each token log p as it was, and log p₀, fp32 `[B, T - 1]`."""

    good_B: Tensor = field(default=NOTHING)
    before_BT: Tensor = field(default=NOTHING)
    first_BT: Tensor = field(default=NOTHING)

    def to(self, device: torch.device) -> Answers:
        made = {name: getattr(self, name).to(device) for name in ("tokens_BT", "labels_BT", "real_BT")}
        return replace(self, **made, **{n: getattr(self, n).to(device) for n in ("good_B", "before_BT", "first_BT")})


@dataclass(frozen=True)
class Round:
    """The rows of a round: answers, and how good each is."""

    answers: Sequence[Example]
    good: Sequence[float]
    before: Sequence[Tensor]
    first: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.answers)

    def batch(self, numbers: Sequence[int]) -> Answers:
        made = collated([[self.answers[n]] for n in numbers])
        before, first = (torch.nn.utils.rnn.pad_sequence([each[n] for n in numbers], batch_first=True)
                         for each in (self.before, self.first))  # fmt: skip
        good = torch.tensor([self.good[n] for n in numbers])
        return Answers(made.tokens_BT, made.labels_BT, None, made.real_BT, made.lines, (), good, before, first)


class Group:
    """The loss above, summed over the tokens of answers."""

    name = "grpo"

    def __init__(self, clip: float, beta: float):
        self.clip, self.beta = clip, beta

    def count(self, batch: Batch) -> int:
        return int((batch.labels_BT != IGNORED).sum())

    def __call__(self, model: Decoder, batch: Batch) -> Tensor:
        assert isinstance(batch, Answers)
        now_BT, learnt_BT = log_p(model, batch), batch.labels_BT[:, 1:] != IGNORED
        ratio, good = (now_BT - batch.before_BT).exp(), batch.good_B[:, None]
        gained = torch.minimum(ratio * good, ratio.clamp(1 - self.clip, 1 + self.clip) * good)
        away = batch.first_BT - now_BT
        return (self.beta * ratio * (away.exp() - away - 1) - gained)[learnt_BT].sum()


def log_p(model: Decoder, batch: Batch) -> Tensor:
    """fp32 `[B, T - 1]`: log p of each token but the first of a row."""
    logits = model.logits(model.hidden(batch.tokens_BT)[:, :-1]).float()
    return logits.log_softmax(-1).gather(-1, batch.tokens_BT[:, 1:, None])[..., 0]


def advantages(rewards: Sequence[float], group: int) -> list[float]:
    """How much better each is than those of its group; groups of equal rewards teach nothing."""
    r = torch.tensor(rewards).view(-1, group)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten().tolist()


def answered(llm: LLM, prompts: Sequence[str], group: int, length: int, seed: int) -> list[Result]:
    """`group` answers to each prompt, all in one batch, each drawn with a seed of its own."""
    llm.model.eval()
    draws = iter(range(seed, seed + len(prompts) * group))
    options = {"max_new_tokens": length, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    asked = [[{"role": "user", "content": each}] for each in prompts for _ in range(group)]
    rows = [llm.completion(messages=each, seed=next(draws), **options) for each in asked]
    for _ in llm.run(rows, timings := Timings()):
        pass
    return [Result.of(row, timings) for row in rows]


@torch.no_grad()
def made(llm: LLM, adapter: Adapter, found: Sequence[Result], good: Sequence[float]) -> Round:
    """A round of answers, with what the model says of them now, and what it said before all rounds."""
    examples = []
    for number, each in enumerate(found):
        learnt = [False] * len(each.prompt_token_ids) + [True] * len(each.token_ids)
        examples.append(Example([*each.prompt_token_ids, *each.token_ids], learnt, number))
    batch = collated([[each] for each in examples]).to(llm.device)
    now = log_p(llm.model, batch)
    with adapter.disabled():
        first = log_p(llm.model, batch)
    sizes = [len(each.ids) - 1 for each in examples]
    return Round(
        examples, good, *([row[:n].cpu() for row, n in zip(each, sizes, strict=True)] for each in (now, first))
    )


def rounds(
    llm: LLM, adapter: Adapter, prompts: Sequence[str], reward: Reward, a: argparse.Namespace
) -> Iterator[float]:
    """Learn, round by round; yields the mean reward of each."""
    named, draw, progress = adapter.named(), random.Random(a.seed), Progress()
    optimizer = Optimizer(named, Update())
    for number in range(a.rounds):
        asked = draw.sample(list(prompts), min(a.batch, len(prompts)))
        found = answered(llm, asked, a.group, a.length, seed=(a.seed + 1) * 1_000_003 + number * 10_007)
        rewards = [reward(asked[n // a.group], each.text) for n, each in enumerate(found)]
        rows = made(llm, adapter, found, advantages(rewards, a.group))
        plan = Plan(progress.step + a.passes, batch=len(rows), micro=a.micro_batch, seed=a.seed)
        run = Run(llm.model, named, Group(a.clip, a.beta), rows, plan, optimizer, lambda step: a.rate, llm.device)
        run.progress = progress
        for _ in train(run):
            pass
        yield sum(rewards) / len(rewards)


def requests(draw: random.Random, count: int) -> list[str]:
    drawn = [[draw.choice(each) for each in (ANIMALS, NAMES, sorted(THINGS))] for _ in range(count)]
    return [f"Tell me a story about {article(a)} named {n} and {article(t)}." for a, n, t in drawn]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights")
    parser.add_argument("--prompts", type=Path, help="one on each line (requests for stories)")
    parser.add_argument(
        "--pattern", default=r"\bbrave\b", help="the reward is 1 where it is found in an answer, else 0"
    )
    for name, value in {"rounds": 12, "batch": 8, "group": 8, "passes": 2, "micro-batch": 64, "length": 16, "seed": 0,
                        "rank": 8, "rate": 2e-3, "clip": 0.2, "beta": 0.02}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"({value})")
    a = parser.parse_args()
    prompts = requests(random.Random(a.seed), 400) if a.prompts is None else a.prompts.read_text().split("\n")
    prompts = [each for each in prompts if each.strip()]

    def reward(asked: str, said: str) -> float:
        return float(re.search(a.pattern, said) is not None)

    llm = minillm.load(a.weights, dtype="float32", kernels="reference")
    adapter = attach(llm, AdapterConfig(a.rank, 2 * a.rank, ALL), a.seed)
    unseen = requests(random.Random(-1), 64) if a.prompts is None else prompts[:64]

    def judged() -> str:
        found = answered(llm, unseen, 1, a.length, seed=7)
        kept = sum(reward(asked, each.text) for asked, each in zip(unseen, found, strict=True))
        return f"{kept:g} of {len(unseen)} answers have the reward, such as: {found[-1].text!r}"

    print(f"before: {judged()}")
    for number, mean in enumerate(rounds(llm, adapter, prompts, reward, a), start=1):
        print(f"round {number}: mean reward {mean:.3f}", flush=True)
    print(f"after: {judged()}")
    adapter.write(a.out, a.weights or str(llm.folder))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
