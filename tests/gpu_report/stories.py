"""Trained checkpoints through the kernels: in fp32 the logits that transformers has recorded and its greedy ids, these
through CUDA graphs; in bf16 an error no larger than that of the plain ops. The demonstration checkpoint of the package,
for which nothing was recorded, is compared with the plain ops on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import config, families
from minillm.engine import inference
from minillm.hub import DEMO
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder, skeleton
from minillm.ops import REFERENCE, Ops
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.load import load as load_weights
from minillm.weights.rules import plan
from minillm.weights.source import Source
from minillm.weights.tensorfile import read_header
from tests.gpu_report.models import graphed, heard, ops_of, recorded, refusal, with_kernels
from tests.gpu_report.worker import Item, NotRun, Run
from tests.helpers import kernel_cases

CLOSE = 1e-4  # what is asked for end to end in fp32
RATIO = 1.5  # of errors in bf16
PIECES = (20, 9)  # of a prompt through the cache; the rest token by token
TOKENS, FEW = 96, 4  # ids, and new ones; of these in a rehearsal


def items(run: Run) -> list[Item]:
    if run.rehearse:
        kernel_cases.shrink(run.patch)
    folders = [DEMO, *map(Path, run.checkpoints)]
    parts: dict[str, Callable[..., None]] = {"logits": logits, "greedy": greedy, "half": half}
    found: list[Item] = [] if run.checkpoints else [("recorded outputs", absent)]
    for name, part in parts.items():
        for folder in folders:
            label = "the demonstration" if folder == DEMO else folder.name
            found.append((f"{label}, {name}", partial(with_kernels, run, partial(part, run, folder))))
    return found


def absent() -> None:
    raise NotRun("no checkpoints with recorded outputs in shared/checkpoints, here or beside; give --checkpoints")


def load(folder: Path, dtype: torch.dtype, device: torch.device, ops: Ops) -> Decoder:
    """As `minillm.load`, without what else an `LLM` needs: a tokenizer."""
    spec, rules, _ = families.resolve(config.read(folder))
    checkpoint, model = Checkpoint(folder), skeleton(spec, dtype, ops)
    planned = plan(checkpoint.info, rules, model.destinations())
    parameters = load_weights(checkpoint, planned, dict(model.named_parameters()), device, lambda done, total: None, {})
    model.load_state_dict(parameters, assign=True)
    return model.requires_grad_(False).eval()


@once
def expected(folder: Path, rehearse: bool) -> dict[str, Any]:
    """Ids, their logits `[T, V]`, a prompt and the greedy ids behind it; perhaps long ids and their last logits."""
    if folder != DEMO:
        values = json.loads((folder / "expected/outputs.json").read_text(encoding="utf-8"))
        tensors = folder / "expected/outputs.safetensors"
        header = read_header(Source(tensors))
        found = {name: stored.values().view(stored.shape) for name, stored in header.items()}
        ids = values["greedy_new_ids"][: FEW if rehearse else None]
        return {**found, "prompt": values["prompt_ids"], "greedy": ids}
    model = load(DEMO, torch.float32, torch.device("cpu"), REFERENCE)
    prompt, count = list(range(3, 19)), FEW if rehearse else TOKENS
    sequence = [*prompt, *(greedy_ids(model, prompt, count)[0])]
    ids = torch.tensor((sequence * TOKENS)[:TOKENS])
    with torch.no_grad():
        return {"input_ids": ids, "logits": model(ids[None])[0], "prompt": prompt, "greedy": sequence[len(prompt) :]}


@torch.inference_mode()
def greedy_ids(model: Decoder, prompt: list[int], count: int, run: Run | None = None) -> tuple[list[int], bool]:
    """And whether steps were replayed."""
    made = Cache(model.spec, 1, len(prompt) + count, model.dtype, model.embedding.weight.device)
    cache = graphed(run, model, made) if run else made
    tokens = [inference.prefill(model, [prompt], cache).argmax(-1)]
    for _ in range(count - 1):
        tokens.append(inference.decode(model, tokens[-1], cache).argmax(-1))
    return torch.cat(tokens).tolist(), recorded(cache)


@torch.no_grad()
def logits(run: Run, folder: Path, without: list[str]) -> None:
    """A prompt at once, and in pieces and token by token through the cache."""
    given = expected(folder, run.rehearse)
    ids, right = given["input_ids"][None].to(run.device), given["logits"].to(run.device)
    model = load(folder, torch.float32, run.device, ops_of(run, torch.float32, without))
    cache = Cache(model.spec, 1, ids.shape[1], torch.float32, run.device)
    rest = ids.shape[1] - sum(PIECES)
    singles = 2 if run.rehearse else rest
    pieces = ids.split([*PIECES, *[1] * singles, *([rest - singles] if rest > singles else [])], dim=1)
    errors = {
        "at once": difference(model(ids)[0], right),
        "through the cache": difference(torch.cat([model(piece, cache) for piece in pieces], dim=1)[0], right),
    }
    if "long_input_ids" in given:
        last = given["long_last_logits"].to(run.device)
        found = model(given["long_input_ids"][None].to(run.device))[0, -len(last) :]
        errors[f"last of {len(given['long_input_ids'])}"] = difference(found, last)
    run.row(errors, all(error <= CLOSE for error in errors.values()), f"the largest difference may be {CLOSE:g}")


def difference(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().max())


def greedy(run: Run, folder: Path, without: list[str]) -> None:
    given = expected(folder, run.rehearse)
    model = load(folder, torch.float32, run.device, ops_of(run, torch.float32, without))
    with heard() as said:
        found, replayed = greedy_ids(model, given["prompt"], len(given["greedy"]), run)
    right = given["greedy"]
    same = next((at for at, token in enumerate(found) if token != right[at]), len(found))
    message = "" if replayed or "attention" in without else f"no graph was recorded; {refusal(said)}"
    message += "" if same == len(found) else f"token {same + 1} is {found[same]} and should be {right[same]}"
    run.row({"ids as they should be": f"{same} of {len(found)}", "graph": replayed}, not message, message)


@torch.no_grad()
def half(run: Run, folder: Path, without: list[str]) -> None:
    """The error of bf16, in a rehearsal of fp16, with kernels and without."""
    given = expected(folder, run.rehearse)
    ids, right = given["input_ids"][None].to(run.device), given["logits"].to(run.device)

    def error(ops: Ops) -> float:
        found = load(folder, run.dtype, run.device, ops)(ids)[0]
        return float((found.float() - right).square().mean().sqrt())

    ours, plain = error(ops_of(run, run.dtype, without)), error(REFERENCE)
    run.row({"error": ours, "error of the plain ops": plain}, ours <= RATIO * plain, f"at most {RATIO} times")
