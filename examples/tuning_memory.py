"""What a step of fine-tuning takes in memory, counted allocation by allocation, and what the command says beforehand.

    python examples/tuning_memory.py [--weights PATH] [--rows N] [--length T] [--rank R]
    torchrun --nproc-per-node 2 examples/tuning_memory.py --ranks 2         what one of two processes takes

Without a checkpoint it takes a Llama of 20 million random values in fp32. "peak" is all that is there at one time, of
weights, gradients, states of the optimiser, what is kept for the way back, and what is only made on the way.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from minillm import families
from minillm.adapters.config import ALL, AdapterConfig
from minillm.model.decoder import Decoder, skeleton
from minillm.tune import budget
from minillm.tune.budget import Budget
from minillm.tune.job import join
from minillm.tune.learner import Learner, whole
from minillm.tune.masking import Example
from minillm.tune.objectives import NextToken
from minillm.tune.optimizers import Optimizer, Update, clipped
from minillm.tune.packing import collated
from minillm.tune.team import ALONE, Team
from minillm.weights.save import save

SHAPE = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 2000, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "torch_dtype": "float32", "tie_word_embeddings": True,
}  # fmt: skip
WAYS = {  # name: integers of the base, layers computed again
    "--full": (None, False), "--full --recompute": (None, True), "adapter": (None, False),
    "adapter, --recompute": (None, True), "adapter, --quantize int8": ("int8", False),
    "adapter, --quantize int4": ("int4", False), "adapter, --quantize int4 --recompute": ("int4", True),
}  # fmt: skip


def made(folder: Path) -> Path:
    """A checkpoint of random weights."""
    spec, rules, _ = families.resolve(SHAPE)
    model, draw = skeleton(spec, torch.float32), torch.Generator().manual_seed(0)
    values = {n: torch.randn(p.shape, generator=draw) * 0.02 if p.dim() > 1 else torch.ones(p.shape)
              for n, p in model.named_parameters()}  # fmt: skip
    save(folder / "model.safetensors", values, rules, model.destinations())
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


def peak(model: Decoder, optimizer: Optimizer, rows: int, length: int, team: Team) -> int:
    """Bytes that a step has at one time, beyond those that were there before."""
    draw = random.Random(0)
    ids = [[draw.randrange(model.spec.vocab_size) for _ in range(length)] for _ in range(rows)]
    batch, objective = collated([[Example(each, [True] * length, 0)] for each in ids]), NextToken()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        (team.computed(objective, model, batch) / objective.count(batch)).backward()
        team.gathered(optimizer.named)
        clipped(optimizer.named, 1.0, team.norm)
        optimizer.step(1e-4, 1)
    there = most = 0
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    for each in sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns()):
        there += each.nbytes()
        most = max(most, there)
    return most


def counted(
    weights: Path | None, way: str, rows: int, length: int, rank: int, team: Team = ALONE
) -> tuple[int, int, Budget]:
    """Bytes: of the weights, at the peak of a step, and what the command would say."""
    scheme, recomputes = WAYS[way]
    llm = team.load(path=weights, dtype="float32", device="cpu", kernels="reference", quantize=scheme)
    llm.model.recomputes = recomputes
    if way.startswith("--full"):
        learner = whole(llm)
    else:
        adapter = team.attach(llm, AdapterConfig(rank, 2 * rank, ALL), 0)
        learner = Learner(llm, adapter.named(), {}, adapter)
    optimizer = Optimizer(team.share(llm.model, learner.named), Update())
    shares = [getattr(each, "to_local", lambda each=each: each)() for each in llm.model.parameters()]
    held, values = sum(each.nbytes for each in shares), learner.values
    there = sum(each.nbytes for state in optimizer.state.values() for each in state.values())
    beside = 0 if learner.adapter is None else 4 * values
    whole_model = skeleton(llm.spec, torch.float32)
    said = Budget(
        team.count * held + (budget.dequantised(skeleton(llm.spec, torch.float32)) if scheme else 0),
        beside + budget.learning(values, torch.float32, Update()),
        budget.activations(llm.spec, rows, length, 4, recomputes),
        budget.logits(llm.spec, rows * length),
    )
    if team.count > 1:
        said = budget.over(team.count, whole_model, said, 0 if beside else values, scheme is not None)
    return held, held + beside + there + peak(llm.model, optimizer, rows, length, team), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=1, help="the processes that torchrun has started")
    a = parser.parse_args()
    team, _ = join(a.ranks, torch.device("cpu"), None)
    say = print if team.leads else lambda line: None
    with team.running(), tempfile.TemporaryDirectory() as scratch:
        weights = a.weights or made(Path(scratch))
        say(f"{'MB':38} weights     peak  formula")
        found = {}
        for way in WAYS:
            held, most, said = found[way] = counted(weights, way, a.rows, a.length, a.rank, team)
            say(f"{way:36} {held / 1e6:9.2f} {most / 1e6:8.2f} {said.total / 1e6:8.2f}")
        share = found["adapter, --quantize int4 --recompute"][1] / found["adapter"][0]
        if team.count == 1:
            say(f"the last has at its peak {share:.2f} of the weights alone of an adapter's plain base")


if __name__ == "__main__":
    main()
