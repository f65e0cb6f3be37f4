"""What lies at an address, for kernels, without numba: the types that stand for PyTorch's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DTYPES = {torch.bfloat16: np.uint16, torch.float16: np.int16, torch.float32: np.float32}
LIKE = {dtype: np.empty(0, kind) for dtype, kind in DTYPES.items()}  # says to a kernel what lies at an address


def address(x: Tensor | None) -> int:
    """Where a contiguous tensor begins; 0 for None."""
    return 0 if x is None else x.data_ptr()
