"""Optimisers against PyTorch's and, of 8 bits, what bitsandbytes' code and steps are; and what 16 bits lose."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from minillm.ops.orthogonal import orthogonal
from minillm.tune import optimizers
from minillm.tune.optimizers import Optimizer, Update, code, packed, rate_of, rounded_at_random, unpacked


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stepped(optimizer: Optimizer, p: nn.Parameter, steps: int = 10, rate: float = 1e-2) -> Tensor:
    for number in range(1, steps + 1):
        p.grad = drawn(*p.shape, seed=number).to(p.dtype)
        optimizer.step(rate, number)
    return p.detach()


def of_pytorch(made: type, p: nn.Parameter, steps: int = 10, rate: float = 1e-2, **options: object) -> Tensor:
    optimizer = made([p], lr=rate, **options)
    for number in range(1, steps + 1):
        p.grad = drawn(*p.shape, seed=number)
        optimizer.step()
    return p.detach()


def test_adamw_is_pytorchs() -> None:
    ours, theirs = (nn.Parameter(drawn(20, 30)) for _ in range(2))
    wanted = of_pytorch(torch.optim.AdamW, theirs, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    found = stepped(Optimizer({"p": ours}, Update(betas=(0.8, 0.99), eps=1e-6, decay=0.1)), ours)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_muon_is_pytorchs_on_each_part() -> None:
    ours, parts = nn.Parameter(drawn(24, 16)), (slice(0, 8), slice(8, 24))
    # The gradient of a part is that of its rows.
    wanted = []
    for rows in parts:
        p = nn.Parameter(drawn(24, 16)[rows].clone())
        optimizer = torch.optim.Muon([p], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for number in range(1, 11):
            p.grad = drawn(24, 16, seed=number)[rows]
            optimizer.step()
        wanted.append(p.detach())
    found = stepped(Optimizer({"p": ours}, Update("muon", decay=0.1), {"p": [8, 16]}), ours)
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-6, atol=1e-6)
    whole = nn.Parameter(drawn(24, 16))
    assert (stepped(Optimizer({"p": whole}, Update("muon", decay=0.1), {"p": [24]}), whole) - found).abs().max() > 1e-3


def test_muon_takes_experts_one_by_one_and_leaves_the_rest_to_adamw() -> None:
    experts, alone = nn.Parameter(drawn(3, 8, 16)), nn.Parameter(drawn(8, 16))
    with torch.no_grad():
        alone.copy_(experts[1])
    of_three, of_one = (Optimizer({"p": p}, Update("muon"), {"p": [8] * n}) for p, n in ((experts, 3), (alone, 1)))
    experts.grad = drawn(3, 8, 16, seed=5)
    alone.grad = experts.grad[1].clone()
    of_three.step(1e-2, 1)
    of_one.step(1e-2, 1)
    torch.testing.assert_close(experts[1], alone, rtol=0, atol=1e-7)
    norm, other = nn.Parameter(drawn(16)), nn.Parameter(drawn(16))
    found = stepped(Optimizer({"p": norm}, Update("muon"), {}), norm)
    torch.testing.assert_close(found, stepped(Optimizer({"p": other}, Update()), other))


def test_singular_values_become_about_one() -> None:
    values = torch.linalg.svdvals(orthogonal(drawn(40, 30)))
    assert 0.6 < values.min() < values.max() < 1.3  # what five steps leave of values that were up to 12


def test_the_code_of_8_bits_is_the_published_one() -> None:
    """256 numbers each, ascending; its smallest and largest steps as Dettmers et al. have them."""
    signed, unsigned = code(True), code(False)
    assert len(signed.unique()) == len(unsigned.unique()) == 256
    assert (signed.min(), signed.max(), unsigned.min(), unsigned.max()) == pytest.approx((-0.99296875, 1, 0, 1))
    assert signed[signed > 0].min() == pytest.approx(5.5e-7)
    assert unsigned[unsigned > 0].min() == pytest.approx(3.25e-7)


@pytest.mark.parametrize(("name", "error"), [("mean", 0.02), ("square", 0.012)])
def test_a_state_of_8_bits_is_near(name: str, error: float) -> None:
    values = drawn(7, 1000)
    values = values.square() if name == "square" else values
    made = packed(name, values)
    assert made[name].dtype == torch.uint8
    assert made[f"{name}_scale"].shape == (28,)  # blocks of 256, the last not full
    found = unpacked(made, name)
    assert found.shape == values.shape
    assert float((found - values).norm() / values.norm()) < error
    assert torch.equal(unpacked(packed(name, torch.zeros(5, 3)), name), torch.zeros(5, 3))


def test_adamw_of_8_bits_is_near_that_of_32() -> None:
    small, large = nn.Parameter(drawn(64, 128)), nn.Parameter(drawn(64, 128))
    of_8 = Optimizer({"p": small}, Update("adamw8bit"))
    assert {name: each.dtype for name, each in of_8.state["p"].items()} == {
        "mean": torch.uint8, "mean_scale": torch.float32, "square": torch.uint8, "square_scale": torch.float32,
    }  # fmt: skip
    moved = stepped(of_8, small) - drawn(64, 128)
    wanted = stepped(Optimizer({"p": large}, Update()), large) - drawn(64, 128)
    assert float((moved - wanted).norm() / wanted.norm()) < 0.05
    few = Optimizer({"p": nn.Parameter(drawn(63, 65))}, Update("adamw8bit"))
    assert few.state["p"]["mean"].dtype == torch.float32  # less than 4096 values


def test_adamw_of_8_bits_is_that_of_bitsandbytes() -> None:
    """Values that 10 steps of version 0.50.2 make of the same gradients. Of 8192 numbers of each state 34 and 158 are
    their neighbours there."""
    p = nn.Parameter(drawn(64, 128))
    found = stepped(Optimizer({"p": p}, Update("adamw8bit", decay=0.1)), p)
    wanted = torch.tensor([-1.053159, -1.177739, -0.184486, -0.349213, 0.844798])
    torch.testing.assert_close(found.flatten()[:5], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stochastic", [False, True], ids=["master copy", "rounded at random"])
def test_16_bits_lose_no_small_steps(stochastic: bool) -> None:
    """Steps of 1e-4 of a weight of 1, each less than half of what bfloat16 tells apart there (2^-8)."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    optimizer = Optimizer({"p": p}, Update(stochastic=stochastic))
    assert ("master" in optimizer.state["p"]) is not stochastic
    for number in range(1, 101):
        p.grad = torch.ones_like(p)
        optimizer.step(1e-4, number)
    assert float(p.detach().float().mean()) == pytest.approx(0.99, abs=5e-4 if stochastic else 2e-3)
    plain = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(100):
        plain -= 1e-4
    assert plain == 1


def test_rounding_at_random_keeps_the_mean_and_what_is_exact() -> None:
    torch.manual_seed(0)
    values = torch.full((100_000,), 1 + 0.3 * 2**-7)
    found = rounded_at_random(values).float()
    assert set(found.tolist()) == {1.0, 1 + 2**-7}
    assert float(found.mean()) == pytest.approx(float(values[0]), abs=5 * 2**-7 * math.sqrt(0.21 / 100_000))
    exact = torch.tensor([1.5, -2.0, 0.0, float("inf"), float("-inf")])
    assert torch.equal(rounded_at_random(exact).float(), exact)
    assert rounded_at_random(torch.tensor([float("nan")])).isnan().all()


def test_schedules() -> None:
    cosine = rate_of("cosine", 1.0, steps=101, warmup=1, floor=0.1)
    assert [cosine(0), cosine(1), cosine(100)] == pytest.approx([1, 1, 0.1])
    assert cosine(50) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 49 / 99)))
    linear = rate_of("linear", 2.0, steps=12, warmup=2, floor=0.0)
    assert [linear(step) for step in (0, 1, 2, 11)] == pytest.approx([1, 2, 2, 0])
    constant = rate_of("constant", 3.0, steps=10, warmup=3, floor=0.1)
    assert [constant(step) for step in range(10)] == pytest.approx([1, 2, *[3] * 8])
    assert rate_of("cosine", 1.0, steps=1, warmup=0, floor=0.1)(0) == 1


def test_gradients_are_clipped_together() -> None:
    named = {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(1)), "none": nn.Parameter(torch.zeros(1))}
    named["a"].grad, named["b"].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert optimizers.clipped(named, None) == 7
    assert optimizers.clipped(named, 3.5) == 7
    assert named["a"].grad.tolist() == pytest.approx([1, 1.5])
