"""What keeps the experts of a mixture busy: the same small model trained three times, and how loaded each expert is.

    python examples/balance_experts.py --out balance.png

Without help some experts get much and some nothing, as what is chosen is trained and what is not stays as it was. The
load-balancing loss (Switch Transformer, with ST-MoE's z-loss) adds a gradient against it; DeepSeek-V3's bias is moved
by hand after each step and leaves the loss alone. See `minillm/model/balance.py`. Half a minute on two cores; needs
matplotlib: pip install -e '.[plot]'.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from torch import Tensor

from minillm import ops
from minillm.model.balance import expert_load, load_balancing_loss, router_z_loss, updated_bias
from minillm.model.decoder import Decoder, next_token_loss
from minillm.ops.routing import Routing
from minillm.spec import GQA, Layer, MoE, Norm, Rope, Router
from minillm.spec import Decoder as Spec
from story_grammar import story

EXPERTS, TOP_K, BATCH, LENGTH = 8, 2, 8, 128
LOSS_WEIGHT, Z_WEIGHT, BIAS_RATE = 0.01, 0.001, 0.01
RUNS = {
    "nothing": "#999999",
    "balancing loss": "#0072B2",
    "bias": "#D55E00",
}  # colours that colour-blind people tell apart


def build(balance: str, seed: int) -> Decoder:
    """Two layers of eight experts over bytes; the bias needs scores that are independent of each other: sigmoids."""
    score = {"score": "sigmoid", "renormalize": True, "bias": True} if balance == "bias" else {"renormalize": True}
    norm, attention = Norm(1e-6), GQA(num_heads=4, num_kv_heads=2, head_dim=16, rope=Rope(16, 1e4))
    layer = Layer(norm, attention, norm, MoE(Router(EXPERTS, TOP_K, **score), intermediate_size=32))
    torch.manual_seed(seed)
    return Decoder(Spec(256, 64, (layer, layer), norm, tied=True, context=LENGTH), ops.CPU)


def batches(steps: int, seed: int) -> Tensor:
    """Stories as bytes, int64 `[steps, BATCH, LENGTH]`."""
    rng, text = random.Random(seed), b""
    while len(text) < steps * BATCH * LENGTH:
        text += "\n".join(story(rng)[1] for _ in range(100)).encode()
    return torch.tensor(list(text[: steps * BATCH * LENGTH])).view(steps, BATCH, LENGTH)


def balancing_loss(routing: list[Routing]) -> Tensor:
    layers = [
        LOSS_WEIGHT * load_balancing_loss(r.logits, r.experts) + Z_WEIGHT * router_z_loss(r.logits) for r in routing
    ]
    return torch.stack(layers).mean()


@torch.no_grad()
def move_bias(model: Decoder, loads: Tensor) -> None:
    for layer, load in zip(model.layers, loads, strict=True):
        bias = layer.ffn.router.bias
        bias.copy_(updated_bias(bias, load, BIAS_RATE))


def train(balance: str, data: Tensor, seed: int) -> tuple[Tensor, list[float]]:
    """Each step's loads, int64 `[steps, layers, EXPERTS]`, and losses."""
    model, loads, losses = build(balance, seed), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, tokens in enumerate(data):
        logits, routing = model(tokens, collect_routing=True)
        loss = next_token_loss(logits, tokens)
        optimizer.zero_grad()
        (loss + balancing_loss(routing) if balance == "balancing loss" else loss).backward()
        optimizer.step()
        loads.append(torch.stack([expert_load(each.experts, EXPERTS) for each in routing]))
        losses.append(loss.item())
        if balance == "bias":
            move_bias(model, loads[-1])
        if step % 50 == 0:
            print(f"{balance}: step {step}/{len(data)} loss {loss.item():.3f}", file=sys.stderr)
    return torch.stack(loads), losses


def plot(found: dict[str, Tensor], out: Path) -> None:
    """Shares of the last tenth of the steps by expert, busiest first, and the busiest expert's over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for index, (balance, loads) in enumerate(found.items()):
        places, color = torch.arange(EXPERTS) + (index - 1) * 0.27, RUNS[balance]
        left.bar(places, shares(loads[-max(1, len(loads) // 10) :]), 0.25, color=color, label=balance)
        busiest = torch.stack([shares(each).max() for each in loads.split(10)])
        right.plot(torch.arange(len(busiest)) * 10, busiest, color=color, label=balance)
    left.set(title="Load of each expert at the end, busiest first", xlabel="expert by rank", ylabel="load / mean load")
    right.set(title="Load of the busiest expert", xlabel="step", ylabel="load / mean load", ylim=(0, None))
    for axes in (left, right):
        axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axes.legend(title="balanced by")
    figure.savefig(out, dpi=120)


def shares(loads: Tensor) -> Tensor:
    """Loads of several steps `[steps, layers, EXPERTS]` over their mean, busiest first, averaged over layers."""
    load = loads.sum(0).float()
    return (load / load.mean(-1, keepdim=True)).sort(-1, descending=True).values.mean(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("balance.png"), help="the picture to write")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; at least 1")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("balance_experts: needs matplotlib; pip install -e '.[plot]'", file=sys.stderr)
        return 2
    data, found = batches(arguments.steps, arguments.seed), {}
    for balance in RUNS:
        found[balance], losses = train(balance, data, arguments.seed)
        last = shares(found[balance][-max(1, len(data) // 10) :])
        loss = sum(losses[-10:]) / len(losses[-10:])
        print(
            f"{balance:>15}: loss {loss:.3f}, busiest expert {last[0]:.2f}, least busy {last[-1]:.2f} of the mean load"
        )
    plot(found, arguments.out)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
