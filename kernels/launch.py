"""Where a kernel is launched: Triton takes the current device, which need not be that of the tensors."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(x: Tensor) -> AbstractContextManager:
    """For a `with` around a launch; while a graph is traced nothing, as compiled code sees to the device itself."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(x)
