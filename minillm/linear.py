"""y = x Wᵀ + b, where W may hold several of a checkpoint's matrices one under the other.

Decoding one token reads every weight once and does next to nothing with it, so its speed is memory bandwidth. On a
CPU oneDNN reads a matrix fastest in a blocked layout of its own: `pack` stores it so, once, after loading. Measured
on two cores with AMX at the shapes of a 0.5B model, bf16: a single row reads 15-24 GB/s packed against 10-15 plain,
and 128 rows compute 1.0-1.7 TFLOP/s against 0.8-1.0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm import quantised, reference


class Linear(nn.Module):
    """x `[..., in_features]` -> `[..., out_features]`.

    `parts` names the row blocks of a fused matrix in order, for example {"q": 896, "k": 128, "v": 128}: a checkpoint
    fills each block by its name, and one product computes them all.
    """

    HOLDABLE = ("weight",)

    def __init__(self, in_features: int, out_features: int | Mapping[str, int], bias: bool = False):
        super().__init__()
        self.parts = dict(out_features) if isinstance(out_features, Mapping) else None
        rows = out_features if isinstance(out_features, int) else sum(out_features.values())
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(rows, in_features))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None
        self.packed: Tensor | None = None
        self.fp8_linear = reference.fp8_linear  # how `quantised.hold` wants a held weight multiplied
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        assert self.weight is not None
        if quantised.is_held(self, "weight"):
            return self.fp8_linear(x, self.weight, self.get_parameter("weight_scale"), self.bias)
        return linear(x, self.weight, self.bias)

    def blocks(self, name: str) -> dict[str, int] | None:
        """The named row blocks of a parameter, in order; None where it is one block."""
        return self.parts

    @torch.no_grad()
    def pack(self) -> None:
        """Replace `weight` by oneDNN's own layout of it: for inference on a CPU only, and not to be undone."""
        if quantised.is_held(self, "weight"):
            return
        assert self.weight is not None
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        self.weight = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. A single bf16 row on a CPU goes through the matrix-vector product, which PyTorch runs up to 1.6 times
    as fast as the matrix product of one row."""
    if bias is None and x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.numel() == x.shape[-1]:
        return torch.mv(weight, x.reshape(-1)).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN has fast kernels for `dtype` on this CPU."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in supported and bool(supported[dtype]())
