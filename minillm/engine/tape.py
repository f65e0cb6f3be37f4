"""A decode step on a CPU recorded once and repeated for every token: what a CUDA graph is on a GPU.

Of a step at batch 1 the work of Python, modules and PyTorch's dispatcher is milliseconds, as much as reading a small
quantised model. A tape keeps the calls that do something, in order: loops with their addresses, and PyTorch's ops with
the tensors they were given, whose results go where they went the first time. Views are not repeated: they still show
what lies under them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillm.ops.cpu.loops.jit import noted, ready

Call = tuple[Callable[..., Any], tuple[Any, ...]]
MEMORY_ONLY = ("empty", "empty_like", "empty_strided", "new_empty")


class Tape(TorchDispatchMode):
    """Records what happens in the `with`; `replay` repeats it on the same memory."""

    sees_loops = True  # unlike other modes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's own question. Yes, its default, would import the compiler, for a second or two, at the first op."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.results: list[Any] = []  # their memory must last as long as their addresses are on the tape

    def __enter__(self) -> Tape:
        self._noted = noted(self.calls)
        self._noted.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._noted.__exit__(*raised)

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, tensors = kwargs or {}, [each for each in tree_leaves(args) if isinstance(each, Tensor)]
        masked = any(each.dtype == torch.bool for each in tensors[1:]) or op is not torch.ops.aten.index.Tensor
        if torch.Tag.data_dependent_output in op.tags or (torch.Tag.dynamic_output_shape in op.tags and masked):
            raise RuntimeError(f"{op} gives the host what changes from step to step")
        result = op(*args, **kwargs)
        self.results.append((args, kwargs, result))
        if op._schema.is_mutable:
            self.calls.append((lambda: op(*args, **kwargs), ()))
        elif not _shown(result, tensors) and op._schema.name.partition("::")[2] not in MEMORY_ONLY:
            self.calls.append((_into(op, args, kwargs, result), ()))
        return result

    def replay(self) -> None:
        """Repeat all calls."""
        with ready(), torch.inference_mode():
            for call, given in self.calls:
                call(*given)


def _shown(result: Any, given: list[Tensor]) -> bool:
    """Whether a result is a view of what was given, by where it lies: some ops return either."""
    memory = {each.untyped_storage().data_ptr() for each in given}
    return all(each.untyped_storage().data_ptr() in memory for each in tree_leaves(result) if isinstance(each, Tensor))


def _into(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Callable[[], Any]:
    """A call of `op` that puts its result, one tensor or several, where `result` lies."""
    packet = op.overloadpacket
    for out in (getattr(packet, name) for name in packet.overloads()) if isinstance(result, Tensor) else ():
        if _given(out) == _given(op) and [each.name for each in out._schema.arguments if each.is_out] == ["out"]:
            return lambda: out(*args, **kwargs, out=result)

    def repeated() -> None:
        again = op(*args, **kwargs)
        for old, new in zip(*((each,) if isinstance(each, Tensor) else each for each in (result, again)), strict=True):
            old.copy_(new)

    return repeated


def _given(op: Any) -> list[tuple[str, str]]:
    """The arguments that an op reads: an op and its overload that writes into a tensor take the same."""
    return [(each.name, str(each.type)) for each in op._schema.arguments if not each.is_out]
