"""From gradients to new parameters: AdamW, the same with states of 8 bits, and Muon; and the schedule of the rate.

    AdamW:  m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) g²;  p <- (1 - r d) p - r m' / (sqrt(s') + eps)
            with m' = m / (1 - b1^t), s' = s / (1 - b2^t)                      (Loshchilov and Hutter, arXiv:1711.05101)
    Muon:   m <- mu m + (1 - mu) g;  p <- (1 - r d) p - 0.2 r sqrt(max(O, I)) orthogonal(mu m + (1 - mu) g)
            orthogonal being U Vᵀ of U S Vᵀ, nearly, by five steps of Newton and Schulz           (arXiv:2502.16982)

A parameter of 16 bits loses what is smaller than some 2^-9 of it: beside it lies a master copy in fp32, or, with
`stochastic`, its new value is rounded up or down at random, with the chance that leaves its mean as it is.

States of 8 bits are in blocks of 256 values with a factor each, as numbers of a code that has more of them where they
are small (Dettmers et al., arXiv:2110.02861). Parameters of less than 4096 values keep states of fp32.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.ops.orthogonal import orthogonal

Kind = Literal["adamw", "adamw8bit", "muon"]
Schedule = Literal["cosine", "linear", "constant"]
KINDS: tuple[Kind, ...] = ("adamw", "adamw8bit", "muon")
SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant")
BLOCK, FEW = 256, 4096
MOMENTUM, MATCHES_ADAM = 0.95, 0.2
SCALE = "_scale"  # behind the name of a state of 8 bits


@dataclass(frozen=True)
class Update:
    """The numbers of an optimiser, but for its rate."""

    kind: Kind = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0
    stochastic: bool = False


class Optimizer:
    """Changes the parameters given by name. `parts` has the rows of matrices that lie one under the other in a
    parameter, which Muon takes one by one; what is not in it, Muon leaves to AdamW.

    `state` is all that it knows: tensors by parameter and by name.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], update: Update, parts: Mapping[str, Sequence[int]] | None = None
    ):
        self.named, self.update, self.parts = named, update, parts or {}
        self.state: dict[str, dict[str, Tensor]] = {name: self._start(name, each) for name, each in named.items()}

    def _start(self, name: str, p: nn.Parameter) -> dict[str, Tensor]:
        made = {"mean": torch.zeros_like(p, dtype=torch.float32, requires_grad=False)}
        if not self._orthogonal(name):
            made["square"] = torch.zeros_like(made["mean"])
        if self.update.kind == "adamw8bit" and p.numel() >= FEW:
            made = dict(itertools.chain(*(packed(key, each).items() for key, each in made.items())))
        if p.dtype != torch.float32 and not self.update.stochastic:
            made["master"] = p.detach().float()
        return made

    def _orthogonal(self, name: str) -> bool:
        return self.update.kind == "muon" and name in self.parts

    @torch.no_grad()
    def step(self, rate: float, number: int) -> None:
        """Take step `number`, the first being 1, with the gradients that the parameters have, and forget these."""
        for name, p in self.named.items():
            if p.grad is None:
                continue
            state, grad = self.state[name], p.grad.float()
            values = p.data if p.dtype == torch.float32 else state.get("master", p.float())
            values.mul_(1 - rate * self.update.decay)
            if self._orthogonal(name):
                self._muon(name, values, grad, state["mean"], rate)
            else:
                self._adamw(values, grad, state, rate, number)
            if self.update.stochastic and p.dtype == torch.bfloat16:
                p.copy_(rounded_at_random(values))
            elif values.data_ptr() != p.data_ptr():
                p.copy_(values)
            p.grad = None

    def _adamw(self, values: Tensor, grad: Tensor, state: dict[str, Tensor], rate: float, number: int) -> None:
        first, second = self.update.betas
        small = f"mean{SCALE}" in state
        mean, square = (unpacked(state, key) if small else state[key] for key in ("mean", "square"))
        mean.lerp_(grad, 1 - first)
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        spread = square.sqrt().div_(math.sqrt(1 - second**number)).add_(self.update.eps)
        values.addcdiv_(mean, spread, value=-rate / (1 - first**number))
        if small:
            state.update(packed("mean", mean), **packed("square", square))

    def _muon(self, name: str, values: Tensor, grad: Tensor, mean: Tensor, rate: float) -> None:
        mean.lerp_(grad, 1 - MOMENTUM)
        wanted, width = grad.lerp(mean, MOMENTUM), values.shape[-1]
        rows = self.parts[name]
        for part, change in zip(values.view(-1, width).split(rows), wanted.view(-1, width).split(rows), strict=True):
            part.add_(orthogonal(change), alpha=-rate * MATCHES_ADAM * math.sqrt(max(part.shape)))


def rounded_at_random(values: Tensor) -> Tensor:
    """fp32 to bfloat16: up with the chance that is the share of the way up, which adding random bits below and cutting
    them off does."""
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return torch.where(values.isfinite(), ((bits + noise) & -65536).view(torch.float32), values).bfloat16()


@functools.cache
def code(signed: bool) -> Tensor:
    """The 256 numbers up to 1 of a state of 8 bits, from -1 on or from 0 on: a power of ten, and the more bits for what
    is between two powers the larger it is; ascending."""
    found, signs = [0.0, 1.0], (1, -1) if signed else (1,)
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (power + (not signed)) + 1, dtype=torch.float64)
        means = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (power - 6)).tolist()
        found += [sign * each for each in means for sign in signs]
    return torch.tensor(sorted(found), dtype=torch.float32)


def packed(name: str, values: Tensor) -> dict[str, Tensor]:
    """A state as uint8 numbers of `code` and a factor for each block."""
    known = code(signed=name == "mean").to(values.device)
    blocks = F.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1)
    scaled = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(scaled, (known[1:] + known[:-1]) / 2).to(torch.uint8)
    return {name: nearest.flatten()[: values.numel()].view_as(values), f"{name}{SCALE}": scale}


def unpacked(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The state that `packed` has made these of, fp32."""
    numbers, scale = state[name], state[f"{name}{SCALE}"]
    values = code(signed=name == "mean").to(numbers.device)[numbers.long().flatten()]
    return (values * scale.repeat_interleave(BLOCK)[: len(values)]).view(numbers.shape)


def rate_of(schedule: Schedule, peak: float, steps: int, warmup: int, floor: float) -> Callable[[int], float]:
    """The rate of each step, counted from 0: up to `peak` in `warmup` steps, none of which is 0, then down to `floor`
    times it on the last."""

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if schedule == "constant":
            return peak
        done = (step - warmup) / max(steps - 1 - warmup, 1)
        left = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
        return peak * (floor + (1 - floor) * left)

    return rate


def norm_of(named: Mapping[str, nn.Parameter]) -> float:
    """That of all gradients together."""
    grads = [each.grad for each in named.values() if each.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in grads])))


def clipped(
    named: Mapping[str, nn.Parameter],
    most: float | None,
    of_all: Callable[[Mapping[str, nn.Parameter]], float] = norm_of,
) -> float:
    """The norm of all gradients together, as `of_all` has it where others have more; where it is more than `most` they
    are made as much smaller."""
    norm = of_all(named)
    if most is not None and norm > most:
        for each in named.values():
            if each.grad is not None:
                each.grad.mul_(most / (norm + 1e-6))
    return norm
