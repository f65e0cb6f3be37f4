"""The seam between the model and its kernels: one frozen object of callables, handed to the model when it is built.

No globals, no environment switches, nothing probed at import: `select` names what runs, and Triton is imported only
when it was chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm import reference

Kernels = Literal["auto", "reference", "triton"]


@dataclass(frozen=True)
class Ops:
    """Every op that has, or may get, more than one implementation; `reference.py` says what each computes."""

    rms_norm: Callable[..., Tensor] = reference.rms_norm
    rope: Callable[..., Tensor] = reference.rope
    gated_act: Callable[..., Tensor] = reference.gated_act
    attention: Callable[..., Tensor] = reference.attention


REFERENCE = Ops()


def select(kernels: Kernels, device: torch.device) -> Ops:
    """The ops for a device. "auto" takes Triton on a GPU and says so if it cannot; "triton" raises if it cannot.

    Raises ValueError for "triton" without the package, or on a CPU outside Triton's interpreter.
    """
    if kernels == "reference" or (kernels == "auto" and device.type != "cuda"):
        return REFERENCE
    try:
        return _triton_ops(device)
    except ValueError as reason:
        if kernels == "triton":
            raise
        print(f"minillm: reference kernels in use: {reason}", file=sys.stderr)
        return REFERENCE


def _triton_ops(device: torch.device) -> Ops:
    try:
        import triton
    except ImportError:
        raise ValueError("kernels='triton' needs the package triton; install minillm[gpu]") from None
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"kernels='triton' cannot run on device '{device}'; use a GPU, kernels='reference', "
            "or Triton's interpreter (TRITON_INTERPRET=1)"
        )
    from minillm.kernels import gated_act, rms_norm, rope

    return Ops(rms_norm=rms_norm.rms_norm, rope=rope.rope, gated_act=gated_act.gated_act)
