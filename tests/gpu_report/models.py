"""Whole models through the kernels: random ones in published shapes, made on the device, and steps of them, timed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm import families
from minillm.engine import inference
from minillm.engine.graphs import DecodeGraph
from minillm.families.shared.shapes import SHAPES
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder, skeleton
from minillm.ops import REFERENCE, Ops, select
from tests.gpu_report.timing import Marks
from tests.gpu_report.worker import NotRun, Run, brief, gone

WARM = 3  # steps: as they are, recorded, and replayed once
ROOM = 0.85  # of the free memory, that weights may take
# A shape in the interpreter: all of these that its config has.
TINY = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "head_dim": 16, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


def ops_of(run: Run, dtype: torch.dtype, without: list[str] | None = None) -> Ops:
    """The kernels, with the plain version of those that are left out."""
    chosen = select("triton", run.device, dtype)
    return dataclasses.replace(chosen, **{name: getattr(REFERENCE, name) for name in without or []})


def with_kernels(run: Run, call: Callable[[list[str]], None]) -> None:
    """`call([])`; where that raises and ops have raised before, once more without their kernels, as a row that says so:
    one kernel that does not compile shall not hide what all others do."""
    fields = {field.name for field in dataclasses.fields(Ops)}
    broken = [name for name in run.broken if name in fields]
    try:
        call([])
    except NotRun:
        raise
    except Exception as error:
        if not broken or gone(run):
            raise
        run.row(ok=False, message=brief(error), raised=True)
        run.item += f", without the kernels of {', '.join(broken)}"
        call(broken)


def random_model(run: Run, shape: str, ops: Ops, layers: int | None = None) -> Decoder:
    """As `bench.weights.write_random`, but on the device; of a shape too large as many layers as fit."""
    values = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
    if run.rehearse:
        values |= {key: size for key, size in TINY.items() if values.get(key) or key == "vocab_size"}
    model = skeleton(families.resolve(values)[0], run.dtype, ops)
    if run.device.type == "cuda" and layers is None:
        free = ROOM * torch.cuda.mem_get_info(run.device)[0]
        if (fitting := layers_that_fit(model, free)) < 2:
            raise NotRun(f"{shape} has too many weights for {free / 1e9:.0f} GB")
        return random_model(run, shape, ops, fitting)
    torch.manual_seed(0)
    made = {}
    for name, like in model.named_parameters():
        values_of = torch.empty(like.shape, dtype=like.dtype, device=run.device)
        made[name] = values_of.fill_(1) if like.dim() == 1 else values_of.normal_(std=0.02)
    model.load_state_dict(made, assign=True)
    return model.requires_grad_(False).eval()


def layers_that_fit(model: Decoder, nbytes: float) -> int:
    """How many layers there may be of a model, at most all, for its weights to take no more bytes."""
    count, all_of_it = len(model.layers), sum(each.nbytes for each in model.parameters())
    of_layers = sum(each.nbytes for each in model.layers.parameters())
    return min(int(count * (nbytes - (all_of_it - of_layers)) / of_layers), count)


class Models:
    """The one that was asked for last."""

    def __init__(self, run: Run):
        self.run, self.key, self.model = run, None, None  # type: tuple[Run, Any, Decoder | None]

    def __call__(self, shape: str, without: list[str]) -> Decoder:
        if self.key != (shape, *without):
            self.key = self.model = None
            gone(self.run)  # gives its memory back
            self.model = random_model(self.run, shape, ops_of(self.run, self.run.dtype, without))
            self.key = (shape, *without)
        assert self.model is not None
        return self.model


def full_cache(run: Run, model: Decoder, rows: int, context: int, room: int) -> Cache:
    """Random keys and values of `context` positions, and room for more. Raises NotRun where memory lacks."""
    try:
        cache = Cache(model.spec, rows, context + room, model.dtype, run.device)
    except torch.cuda.OutOfMemoryError as error:
        raise NotRun(f"no memory for a cache of {rows} x {context} positions") from error
    for layer in cache.layers:
        for tensor in filter(lambda each: isinstance(each, Tensor), vars(layer).values()):
            tensor.normal_()
    cache.length = cache.prompt_length = context
    return graphed(run, model, cache)


class Repeated:
    """Stands for a CUDA graph in a rehearsal: a replay makes the calls again."""

    def __init__(self, run: Callable[[], Tensor], result: Tensor):
        self.run, self.result = run, result

    def replay(self) -> None:
        self.result.copy_(self.run())


def repeated(run: Callable[[], Tensor], device: torch.device) -> tuple[Repeated, Tensor]:
    result = run()
    return Repeated(run, result), result


def graphed(run: Run, model: Decoder, cache: Cache) -> Cache:
    """A cache whose steps are recorded; on a GPU the engine does that by itself."""
    if run.rehearse:
        cache.graph = DecodeGraph(model, repeated)
    return cache


def recorded(cache: Cache) -> bool:
    return cache.graph is not None and cache.graph.recording is not None


@torch.inference_mode()
def decode_seconds(run: Run, model: Decoder, cache: Cache, tokens_B: Tensor, steps: int) -> float:
    """The median of greedy steps, each token drawn on the device, as the engine has it in flight."""
    marks = Marks(run.device)
    for at in range(WARM + steps):
        if at >= WARM:
            marks.mark()
        tokens_B = inference.decode(model, tokens_B, cache).argmax(-1)
    marks.mark()
    return marks.median()


def refusal(said: io.StringIO) -> str:
    """Why no step was recorded, of what was printed."""
    return " ".join(line for line in said.getvalue().splitlines() if "none is recorded" in line)


@contextlib.contextmanager
def heard() -> Any:
    """What is printed to stderr meanwhile, which goes there too."""
    said, stderr = io.StringIO(), sys.stderr
    with contextlib.redirect_stderr(said):
        try:
            yield said
        finally:
            print(said.getvalue(), end="", file=stderr)
