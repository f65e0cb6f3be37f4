"""The loss of the last layer without all of its logits: mean over n of -log softmax(cap(W h_n + b))[target_n].

Logits of N tokens over a vocabulary of V are the largest tensor of a training step: 8192 tokens over 262,144 words take
4 GB in bfloat16, and their gradient as much again. Here the tokens go through in chunks (Hsu et al., Liger Kernel,
arXiv:2410.10989): a chunk's logits are one product, one kernel turns them where they lie into their own gradient,

    dz = (softmax(z) - onehot(target)) / count          [times 1 - (z / c)² with a cap c tanh(· / c)]

and two products make of it the chunk's part of dh = dz W and dW = dzᵀ h. So the gradients are ready with the loss, and
backward only multiplies them by the gradient that comes in. A chunk has as many rows that its logits take about as much
memory as h does, but some hundreds at least: dW is read and written once for each. The products are PyTorch's; the
kernel reads each logit twice (once for the maximum and the sum, once for the gradient) and writes it once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.online_softmax import softcapped

BLOCK, WARPS = 4096, 16  # logits at a time of a row
CHUNK = 1024  # rows at least


@triton.jit
def capped(z, cap, HAS_CAP: tl.constexpr):
    if HAS_CAP:
        z = softcapped(z, cap)
    return z


@triton.jit
def loss_kernel(
    z_ptr, targets_i64_ptr, loss_f32_ptr, count_f32_ptr, z_t, vocabulary, ignore, cap,
    HAS_CAP: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_t
    target = tl.load(targets_i64_ptr + row)
    counted = target != ignore
    # Before the loops: the last overwrites what stands there, and not all of a program is at the same place then.
    known = (target >= 0) & (target < vocabulary)
    at_target = capped(tl.load(z_ptr + target, mask=known, other=0.0).to(tl.float32), cap, HAS_CAP)
    m, mass = float("-inf"), 0.0
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
        z = tl.where(columns < vocabulary, capped(z, cap, HAS_CAP), float("-inf"))
        highest = tl.maximum(m, tl.max(z, axis=0))
        mass = mass * tl.exp(m - highest) + tl.sum(tl.exp(z - highest), axis=0)
        m = highest
    loss = tl.where(known, m + tl.log(mass) - at_target, float("nan"))
    tl.store(loss_f32_ptr + row, tl.where(counted, loss, 0.0))
    if GRADIENT:
        share = tl.where(counted, 1.0 / tl.load(count_f32_ptr), 0.0)
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            z = tl.load(z_ptr + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)
            z = capped(z, cap, HAS_CAP)
            dz = (tl.exp(z - m) / mass - tl.where(columns == target, 1.0, 0.0)) * share
            if HAS_CAP:
                dz *= 1.0 - (z / cap) * (z / cap)
            tl.store(z_ptr + columns, dz.to(z_ptr.dtype.element_ty), mask=columns < vocabulary)


def losses(z: Tensor, targets: Tensor, count: Tensor, ignore: int, softcap: float | None, gradient: bool) -> Tensor:
    """Logits `[N, V]` -> each row's loss, fp32 `[N]`, 0 where its target is `ignore`; with `gradient` z becomes the
    gradient of the sum of losses over `count`, fp32 `[]`."""
    found = torch.empty(len(z), dtype=torch.float32, device=z.device)
    if len(z):
        with on_device_of(z):
            loss_kernel[(len(z),)](
                z, targets, found, count, z.stride(0), z.shape[1], ignore, softcap or 0.0,
                HAS_CAP=softcap is not None, GRADIENT=gradient, BLOCK=min(BLOCK, triton.next_power_of_2(z.shape[1])),
                num_warps=WARPS,
            )  # fmt: skip
    return found


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, softcap, ignore):
        wanted = any(ctx.needs_input_grad[:3])
        count = (targets != ignore).sum().clamp(min=1).float()
        rows = max(triton.next_power_of_2(triton.cdiv(hidden.numel(), weight.shape[0])), CHUNK)
        dhidden = torch.zeros_like(hidden) if wanted else None
        dweight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted else None
        dbias = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            h = hidden[start : start + rows]
            z = h @ weight.t() if bias is None else torch.addmm(bias, h, weight.t())
            total += losses(z, targets[start : start + rows], count, ignore, softcap, wanted).sum()
            if wanted:
                torch.mm(z, weight, out=dhidden[start : start + rows])
                dweight += z.t() @ h
                dbias += z.sum(0, dtype=torch.float32)
        if wanted:
            ctx.save_for_backward(dhidden, dweight.to(weight.dtype), dbias.to(weight.dtype))
        return total / count

    @staticmethod
    def backward(ctx, g):
        gradients = [each * g.to(each.dtype) if need else None
                     for each, need in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]  # fmt: skip
        return *gradients, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    ignore_index: int = -100,
    bias: Tensor | None = None,
) -> Tensor:
    """hidden `[N, H]`, weight `[V, H]`, bias `[V]`, targets int64 `[N]` -> the mean loss over the targets that are not
    `ignore_index`, fp32 `[]`, with gradients for hidden, weight and bias; 0 where there are none such.

    A target that is neither that nor of the vocabulary gives NaN: to raise would wait for the device. Raises ValueError
    for shapes and types that do not fit.
    """
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or targets.shape != hidden.shape[:1]
    ):
        raise ValueError(f"linear_cross_entropy: hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets "
                         f"{list(targets.shape)} do not fit; expected [N, H], [V, H] and [N]")  # fmt: skip
    if targets.dtype != torch.int64:
        raise ValueError(f"linear_cross_entropy: targets are {targets.dtype}, expected torch.int64")
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None and (each.dtype != hidden.dtype or each.device != hidden.device):
            raise ValueError(f"linear_cross_entropy: {name} is {each.dtype} on {each.device}, hidden {hidden.dtype} on "
                             f"{hidden.device}")  # fmt: skip
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_cross_entropy: bias is {list(bias.shape)}, expected [{len(weight)}]")
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets.contiguous(), softcap, ignore_index)
