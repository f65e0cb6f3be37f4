"""The seam between the model and its kernels: one frozen object of callables, handed to the model when it is built.

No globals, no environment switches, nothing probed at import: `select` decides what runs, and Triton is imported only
if it was chosen.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from minillm.ops import draw, grouped, paged, recurrent, reference, routing, selective, state_space
from minillm.ops.ranks import ALONE, Alone
from minillm.ops.routing import Routing

Kernels = Literal["auto", "reference", "triton", "training"]


@dataclass(frozen=True)
class Ops:
    """Every op that has more than one implementation; `reference.py`, `recurrent.py`, `routing.py` and `draw.py` say
    what each computes. Matrices in groups (`weights/grouped.py`) lie in tiles of `tile` rows. A model may lie in
    several `ranks`."""

    tile: int = 1
    ranks: Alone = ALONE
    linear: Callable[..., Tensor] = reference.linear
    rms_norm: Callable[..., Tensor] = reference.rms_norm
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]] = reference.add_rms_norm
    add: Callable[..., Tensor] = reference.add
    cos_sin: Callable[..., tuple[Tensor, Tensor]] = reference.cos_sin
    rope: Callable[..., Tensor] = reference.rope
    qk_norm_rope_cache: Callable[..., Tensor] = reference.qk_norm_rope_cache
    gated_act: Callable[..., Tensor] = reference.gated_act
    attention: Callable[..., Tensor] = reference.attention
    latent_attention: Callable[..., Tensor] = reference.latent_attention
    paged_attention: Callable[..., Tensor] = paged.paged_attention
    paged_latent_attention: Callable[..., Tensor] = paged.paged_latent_attention
    short_conv: Callable[..., Tensor] = recurrent.short_conv
    short_conv_step: Callable[..., Tensor] = recurrent.short_conv_step
    delta_rule: Callable[..., tuple[Tensor, Tensor]] = recurrent.delta_rule
    delta_step: Callable[..., Tensor] = recurrent.delta_step
    channel_rule: Callable[..., tuple[Tensor, Tensor]] = recurrent.channel_rule
    gated_conv_step: Callable[..., Tensor] = recurrent.gated_conv_step
    state_scan: Callable[..., tuple[Tensor, Tensor]] = state_space.scan
    state_step: Callable[..., Tensor] = state_space.state_step
    selective_scan: Callable[..., tuple[Tensor, Tensor]] = selective.selective_scan
    selective_step: Callable[..., Tensor] = selective.selective_step
    gated_rms_norm: Callable[..., Tensor] = recurrent.gated_rms_norm
    route: Callable[..., Routing] = routing.route
    experts: Callable[..., Tensor] = reference.experts
    grouped_linear: Callable[..., Tensor] = reference.grouped_linear
    fp8_linear: Callable[..., Tensor] = reference.fp8_linear
    linear_cross_entropy: Callable[..., Tensor] = reference.linear_cross_entropy
    sample: Callable[..., Tensor] = draw.sample


REFERENCE = Ops()
CPU = Ops(experts=grouped.experts)  # without the compiled loops of `ops/cpu/ops.py`


def select(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Ops:
    """The ops for a device and dtype. "auto" takes Triton on a GPU and says so if it cannot; "triton" raises then.
    "training" is "auto" on a GPU, and on a CPU what gives the same bits at every step.

    Raises ValueError for another name, and for "triton" without the package, on a CPU outside Triton's interpreter, or
    with bfloat16 in it.
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels is {kernels!r}; use auto, reference or triton")
    if kernels == "reference":
        return REFERENCE
    if kernels == "training" and device.type == "cpu":
        return _training_ops()
    if kernels == "auto" and device.type != "cuda":
        return _cpu_ops()
    try:
        return _triton_ops(device, dtype)
    except ValueError as reason:
        if kernels == "triton":
            raise
        print(f"minillm: reference kernels in use: {reason}", file=sys.stderr)
        return CPU


def _cpu_ops() -> Ops:
    if importlib.util.find_spec("numba") is None:
        print("minillm: plain PyTorch in use, which is slower: there is no package numba; install it", file=sys.stderr)
        return CPU
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        print("minillm: plain PyTorch in use, which is slower: NUMBA_DISABLE_JIT is set", file=sys.stderr)
        return CPU
    from minillm.ops.cpu import memory
    from minillm.ops.cpu import ops as cpu_ops

    memory.keep_memory()
    return Ops(**cpu_ops.OPS, tile=cpu_ops.TILE)


def _training_ops() -> Ops:
    from minillm.ops.cpu import memory, training

    memory.keep_memory()
    return Ops(**training.OPS)


def _triton_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    try:
        import triton
    except ImportError:
        raise ValueError("kernels='triton' needs triton: pip install -e '.[gpu]' in the clone") from None
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"kernels='triton' cannot run on device '{device}'; use a GPU, kernels='reference', "
            "or Triton's interpreter (TRITON_INTERPRET=1)"
        )
    if device.type != "cuda" and dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter computes wrong values in bfloat16; use dtype float32 or float16")
    from minillm.kernels import tuning
    from minillm.ops import triton as triton_ops

    if device.type == "cuda":
        tuning.prepare(device)
    return Ops(**triton_ops.OPS)
