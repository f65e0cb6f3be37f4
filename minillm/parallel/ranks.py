"""What crosses between ranks, through torch.distributed: gloo on CPUs, NCCL on GPUs.

    total     the sum of what each rank has computed of a tensor, in fp32 whatever its type
    joined    each rank's share of the logits, side by side
    entered   nothing, but on the way back of what is learnt (`gradients.py`)
    through   hidden states around the ring of stages (`stages.py`), each of which may lie in several ranks:
              rank r has share r % wide of stage r // wide
    tell      what the first rank does next, as JSON and tensors: the others do the same (`follow.py`)

A rank that is gone or does not answer leaves the others nothing to go on with, so they end. Why is said in one line:
by the launcher where it is ours (`launch.py`), else by each of them.

No process may come to the end of Python with threads of gloo: one that gives a tensor back then is ended in the middle
of C++, and the process aborts. So ranks `leave`, or `close` what they have while they still can.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from minillm.guard import screen
from minillm.guard.jsonfile import parsed
from minillm.parallel.gradients import Several
from minillm.parallel.split import cut

TIMEOUT = 120.0  # seconds that a rank waits for another in the middle of a pass
START = 600.0  # for all to be there and to have read their weights
IDLE = 365 * 24 * 3600.0  # for the first to say what is next
GRACE = 3.0  # for a launcher to end a rank that can only say that another is gone; so many times longer for others
FAILED, LOST = 2, 3  # exit codes; the other is of a rank that leaves it to our launcher to say which one is gone
HEAD = 1024  # bytes of a message that come at once
INTEGERS = (torch.int64, torch.int32)
_gathered = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Ranks(Several):
    """The process group, as rank `rank` of `count`. The first of them is asked for text, the others follow."""

    def __init__(
        self, rank: int, count: int, device: torch.device, store: str | None, timeout: float = TIMEOUT, stages: int = 1
    ):
        self.rank, self.count, self.timeout, self.device = rank, count, timeout, device
        self.wide, self.staged = count // stages, stages > 1
        self._gone: list[int] = []
        self._flying: list[tuple[Any, Tensor]] | None = None  # what is on its way while passes flow
        self._alike, self._leaving, self._launched = False, False, store is not None
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            where, start = f"file://{store}" if store else None, timedelta(seconds=START)
            dist.init_process_group(backend, where, start, count, rank)
            self.ring = dist.new_group(timeout=timedelta(seconds=timeout))
            self.data = self._beside(timedelta(seconds=timeout))
            self.words = dist.new_group(timeout=timedelta(seconds=IDLE if rank else timeout))
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            free = "MASTER_ADDR and MASTER_PORT must be a free port of the first rank's machine"
            raise ValueError(f"rank {rank} of {count} found no way to the others ({reason}); {free}") from None
        atexit.register(self.close)

    def _beside(self, timeout: timedelta) -> dist.ProcessGroup:
        """The group of those that share the layers that this one has."""
        if not self.staged:
            return self.ring
        made = [dist.new_group([*range(at, at + self.wide)], timeout) for at in range(0, self.count, self.wide)]
        return made[self.rank // self.wide]

    def all_of(self, number: int) -> list[int]:
        """The number that each rank gives."""
        return [int(each) for each in self._of_each(torch.tensor([number]))]

    def _of_each(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.count)]
        with self._or_end():
            dist.all_gather(found, own)
        return found

    def agreed(self, mark: str) -> None:
        """Raise ValueError where ranks do not have the same to begin with, of which `mark` is a digest."""
        found = self._of_each(torch.tensor(list(mark.encode()[:64].ljust(64)), dtype=torch.uint8))
        odd = [str(rank) for rank, each in enumerate(found) if not torch.equal(each, found[0])]
        if odd:
            what = "another checkpoint, data, options or version of minillm than rank 0"
            raise ValueError(f"rank {', '.join(odd)} has {what}; give all the same files")
        self._alike = True

    def summed(self, y: Tensor) -> Tensor:
        summed = y.float().contiguous()
        self._done(dist.all_reduce, summed, group=self.data)
        return summed.to(y.dtype)

    def most(self, y: Tensor) -> Tensor:
        """The largest of what each rank has."""
        with self._or_end():
            dist.all_reduce(y, dist.ReduceOp.MAX, group=self.data)
        return y

    def beside(self, part: Tensor, size: int) -> Tensor:
        sizes = [end - first for first, end in (cut(size, self.wide, rank) for rank in range(self.wide))]
        padded = part.new_zeros(*part.shape[:-1], max(sizes))
        padded[..., : part.shape[-1]] = part
        found = part.new_empty(self.wide * padded.numel())
        self._done(_gathered, found, padded.view(-1), group=self.data)
        shares = found.view(self.wide, *padded.shape)
        return torch.cat([share[..., :count] for share, count in zip(shares, sizes, strict=True)], dim=-1)

    def through(self, x: Tensor, layers: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.staged:
            return layers(x)
        behind = self.rank >= self.wide
        source, target = ((self.rank + step) % self.count for step in (-self.wide, self.wide))
        if behind:
            self._done(dist.recv, x, source, group=self.ring)
        y = layers(x).contiguous()
        self._passes(dist.send, dist.isend, y, target)
        if not behind:
            self._passes(dist.recv, dist.irecv, y := torch.empty_like(y), source)
        return y

    def _passes(self, now: Callable[..., Any], later: Callable[..., Any], y: Tensor, other: int) -> None:
        if self._flying is None:
            return self._done(now, y, other, group=self.ring)
        with self._or_end():
            self._flying.append((later(y, other, self.ring), y))

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        flying: list[tuple[Any, Tensor]] = []
        self._flying = flying
        try:
            yield
        finally:
            self._flying = None
        for work, _ in flying:
            with self._or_end():
                work.wait()

    def _done(self, call: Callable[..., Any], *given: Any, **how: Any) -> None:
        """A call that a recording has to repeat, which would not see it by itself."""
        if not is_in_torch_dispatch_mode():
            return self._called(call, how, *given)
        from minillm.engine.tape import note

        note(self._called, call, how, *given)
        with _disable_current_modes():
            self._called(call, how, *given)

    def _called(self, call: Callable[..., Any], how: Mapping[str, Any], *given: Any) -> None:
        with self._or_end():
            call(*given, **how)

    def forget(self, number: int) -> None:
        self._gone.append(number)  # is told with what comes next: this may be called at any time

    def tell(self, what: str, tensors: Sequence[Tensor] = (), **given: Any) -> None:
        if self.rank:
            return
        shapes = [[str(each.dtype).removeprefix("torch."), *each.shape] for each in tensors]
        gone, self._gone = self._gone, []
        text = json.dumps({"what": what, "gone": gone, "shapes": shapes, **given}).encode()
        first = torch.zeros(HEAD, dtype=torch.uint8)
        message = len(text).to_bytes(8, "little") + text
        first[: len(message)] = torch.frombuffer(bytearray(message[:HEAD]), dtype=torch.uint8)
        self._broadcast(first)
        if rest := message[HEAD:]:
            self._broadcast(torch.frombuffer(bytearray(rest), dtype=torch.uint8))
        whole = [each.flatten().long() for each in tensors if each.dtype in INTEGERS and each.numel()]
        if whole:
            self._broadcast(torch.cat(whole))
        for each in tensors:
            if each.dtype not in INTEGERS:
                self._broadcast(each.contiguous())

    def told(self) -> tuple[str, list[Tensor], dict[str, Any]]:
        """What the first rank says next: a word, tensors, and what else goes with it."""
        message = self._broadcast(torch.empty(HEAD, dtype=torch.uint8)).numpy().tobytes()
        length = int.from_bytes(message[:8], "little")
        if (rest := length + 8 - HEAD) > 0:
            message += self._broadcast(torch.empty(rest, dtype=torch.uint8)).numpy().tobytes()
        given = dict(parsed(message[8 : 8 + length].decode(), "a message"))
        kinds = [(getattr(torch, dtype), shape) for dtype, *shape in given.pop("shapes")]
        count = sum(torch.Size(shape).numel() for dtype, shape in kinds if dtype in INTEGERS)
        whole = self._broadcast(torch.empty(count, dtype=torch.int64, device=self.device)) if count else torch.empty(0)
        tensors, at = [], 0
        for dtype, shape in kinds:
            size = torch.Size(shape).numel()
            if dtype in INTEGERS:
                tensors.append(whole[at : at + size].to(dtype).view(shape))
                at += size
            else:
                tensors.append(self._broadcast(torch.empty(shape, dtype=dtype, device=self.device)))
        return given.pop("what"), tensors, given

    def _broadcast(self, values: Tensor) -> Tensor:
        with self._or_end():
            dist.broadcast(values, 0, group=self.words)
        return values

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """A pass from its beginning to its end: Ctrl-C in the middle would leave the others waiting."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        asked: list[int] = []
        before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _or_end(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self._leaving:
                raise
            self._lost(error)

    def _lost(self, error: RuntimeError) -> NoReturn:
        """End this process, whatever it was about to do: nothing can be computed any more."""
        silent = "time" in str(error).lower()
        if self._launched and not silent:
            self.leave(LOST)
        time.sleep(0 if self._launched else GRACE * (1 + 2 * (self.rank > 0)))
        what = f"has not answered for {self.timeout:g} s" if silent else "has ended"
        said = f"rank {self.rank} of {self.count}: another rank {what}"
        screen.error(f"{said}, so this one ends; start all of them again")
        self.leave(FAILED)

    def leave(self, code: int = 0) -> NoReturn:
        """End this process as it is, with what it has written."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    def close(self) -> None:
        """Let the others go, and give up all that is open between ranks: the threads of a group end with the last that
        refers to it."""
        if self._leaving:
            return
        self._leaving = True
        if self._alike:  # else nobody listens yet
            with contextlib.suppress(RuntimeError):  # where one has gone before, there is nothing left to say
                self.tell("end")
        del self.ring, self.data, self.words
        dist.destroy_process_group()
