"""The soft cap of scores and logits (Gemma 2, arXiv:2408.00118): c tanh(z / c)."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1 loses what is small beside 1, so below 0.625 an odd polynomial stands in (Cephes' tanhf)."""
    square = x * x
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    return tl.where(tl.abs(x) < 0.625, series * square * x + x, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def softcapped(z, cap):
    return cap * tanh(z / cap)
