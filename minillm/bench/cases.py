"""What `bench kernels` times: every op at the shapes of published models, with the bytes that any implementation has to
move and the operations that it has to do.

Norms, rotations and products are those of Llama-3.1-8B, experts those of a mixture like Qwen3-MoE's, latents those of
DeepSeek-V2-Lite (16 heads) and V3 (128). Weights and caches are counted once, and of experts the chosen ones only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillm.ops import Ops
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility
from minillm.spec import Router
from minillm.weights.grouped import Grouped
from minillm.weights.ints import Int4, Int8

# Forms of matrices in groups: what this project quantises to, those of GGUF's Q4_K and Q6_K, and NF4 with any table.
FORMS = {
    "int8": Int8().form,
    "int4": Int4().form,
    "4 bits of 32": Grouped(4, 32, torch.int8, torch.float16, 256, minimum=True),
    "6 bits of 16": Grouped(6, 16, torch.int8, torch.float16, 256, zero=32),
    "table of 64": Grouped(4, 64, torch.float32, table=tuple((n - 8) / 8 for n in range(16))),
}


@dataclass(frozen=True)
class Case:
    """One op at one shape. `run` makes the call through some ops; `sdpa` is PyTorch's fused kernel for the same, where
    there is one. A kernel beside the seam has no plain version."""

    op: str
    shape: str
    run: Callable[[Ops], Any]
    nbytes: int
    flops: int
    sdpa: Callable[[], Any] | None = None
    plain: bool = True


@dataclass(frozen=True)
class Sizes:
    """Of everything that is timed; tests have smaller ones."""

    tokens: int = 8192
    past: int = 8192
    batch: int = 32
    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    latent_heads: tuple[int, ...] = (16, 128)
    rank: int = 512
    rotary: int = 64
    experts: int = 64
    top_k: int = 8
    expert_hidden: int = 2048
    expert_inner: int = 1024
    delta_heads: tuple[int, int] = (16, 32)
    expert_tokens: tuple[int, ...] = (1, 8, 4096)
    vocabulary: int = 128256
    rows: tuple[int, ...] = (1, 4096)
    prefill: int = 4096


class Cases:
    """Makes them on a device in a type: `Cases(...).all()`. Each family of ops is a method that yields its own."""

    def __init__(self, device: torch.device, dtype: torch.dtype, sizes: Sizes):
        self.device, self.dtype, self.sizes = device, dtype, sizes

    def all(self) -> Iterator[Case]:
        """One after the other, so that what one takes is free for the next."""
        families = (
            self.norms,
            self.heads,
            self.prefill,
            self.decode,
            self.latent,
            self.mixture,
            self.quantised,
            self.recurrent,
        )
        yield from itertools.chain.from_iterable(family() for family in (*families, self.vocabulary, self.in_groups))

    def made(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    def norms(self) -> Iterator[Case]:
        s = self.sizes
        x, residual, w = self.made(s.tokens, s.hidden), self.made(s.tokens, s.hidden), self.made(s.hidden)
        shape = f"{s.tokens} x {s.hidden}"
        yield Case("rms_norm", shape, lambda ops: ops.rms_norm(x, w, 1e-5), 2 * x.nbytes, 4 * x.numel())
        yield Case(
            "add_rms_norm", shape, lambda ops: ops.add_rms_norm(x, residual, w, 1e-5), 4 * x.nbytes, 5 * x.numel()
        )
        both = self.made(s.tokens, 2 * s.inner)
        moved = both.nbytes * 3 // 2
        yield Case("gated_act", f"{s.tokens} x {s.inner}", lambda ops: ops.gated_act(both), moved, 3 * both.numel())

    def heads(self) -> Iterator[Case]:
        s, all_heads = self.sizes, self.sizes.heads + 2 * self.sizes.kv_heads
        qkv, (cos, sin) = self.made(1, s.tokens, all_heads * s.head_dim), self.made(2, 1, s.tokens, s.head_dim // 2)
        x, (k, v) = qkv.unflatten(-1, (all_heads, -1)), self.made(2, 1, s.kv_heads, s.tokens, s.head_dim)
        slots, weight = torch.arange(s.tokens, device=self.device)[None], self.made(s.head_dim)
        yield Case(
            "rope", f"{s.tokens} x {all_heads} x {s.head_dim}", lambda ops: ops.rope(x, cos, sin), 2 * x.nbytes,
            3 * x.numel(),
        )  # fmt: skip
        yield Case(
            "qk_norm_rope_cache", f"{s.tokens} x {all_heads} x {s.head_dim}",
            lambda ops: ops.qk_norm_rope_cache(qkv, s.heads, k, v, slots, cos, sin, "half", weight, weight, 1e-5),
            2 * qkv.nbytes, 7 * qkv.numel(),
        )  # fmt: skip

    def prefill(self) -> Iterator[Case]:
        s = self.sizes
        q = self.made(1, s.heads, s.prefill, s.head_dim)
        k, v = self.made(2, 1, s.kv_heads, s.prefill, s.head_dim)
        whole, moved = Visibility(0, s.prefill, None, None, self.device), 2 * q.nbytes + 2 * k.nbytes
        flops = 2 * s.heads * s.prefill * (s.prefill + 1) * s.head_dim

        def flash() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        yield Case("attention", f"prefill {s.prefill}", lambda ops: ops.attention(q, k, v, whole), moved, flops, flash)
        ends = torch.tensor([0, s.prefill // 4, s.prefill // 2, s.prefill], dtype=torch.int32, device=self.device)
        rows = [each[0].transpose(0, 1).contiguous() for each in (q, k, v)]
        lengths = [s.prefill // 4, s.prefill // 2 - s.prefill // 4, s.prefill - s.prefill // 2]

        def ragged(_: Ops) -> Tensor:
            from minillm.kernels.attention import ragged_attention

            return ragged_attention(rows[0], rows[1], rows[2], ends, ends, max(lengths))

        work = sum(2 * s.heads * n * (n + 1) * s.head_dim for n in lengths)
        yield Case("ragged_attention", f"3 in {s.prefill}", ragged, moved, work, plain=False)

    def decode(self) -> Iterator[Case]:
        s = self.sizes
        q = self.made(s.batch, s.heads, 1, s.head_dim)
        k, v = self.made(2, s.batch, s.kv_heads, s.past, s.head_dim)
        last, flops = Visibility(s.past - 1, 1, None, None, self.device), 4 * q.numel() * s.past
        shape = f"{s.batch} x 1 behind {s.past}"

        def fused() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        yield Case("attention", shape, lambda ops: ops.attention(q, k, v, last), k.nbytes + v.nbytes, flops, fused)
        pages, of_all = self.pages(s.batch, s.past), q[:, :, 0].transpose(0, 1)[None]
        keys, values = (each.transpose(0, 1).flatten(1, 2)[None] for each in (k, v))  # [1, K, slots, D]

        def on_pages(ops: Ops) -> Tensor:
            return ops.paged_attention(of_all, keys, values, pages)

        yield Case("paged_attention", shape, on_pages, k.nbytes + v.nbytes, flops)

    def pages(self, batch: int, past: int) -> Paged:
        """Sequences of `past` positions in blocks of 16, in any order."""
        tables = torch.randperm(batch * (past // 16), device=self.device).view(batch, -1).int()
        return Paged.at(torch.full((batch,), past - 1, device=self.device), tables, 16, None)

    def latent(self) -> Iterator[Case]:
        s = self.sizes
        width = s.rank + s.rotary
        latent, last = self.made(s.batch, s.past, width), Visibility(s.past - 1, 1, None, None, self.device)
        whole, pages = latent.view(1, -1, width), self.pages(s.batch, s.past)
        for heads in s.latent_heads:
            q, flops = self.made(s.batch, heads, 1, width), 2 * s.batch * heads * s.past * (width + s.rank)

            def run(ops: Ops, q: Tensor = q) -> Tensor:
                return ops.latent_attention(q, latent, s.rank, last, 0.07)

            def on_pages(ops: Ops, q: Tensor = q) -> Tensor:
                return ops.paged_latent_attention(q[:, :, 0].transpose(0, 1)[None], whole, s.rank, pages, 0.07)

            shape = f"{s.batch} x {heads} heads behind {s.past}"
            yield Case("latent_attention", shape, run, latent.nbytes, flops)
            yield Case("paged_latent_attention", shape, on_pages, latent.nbytes, flops)

    def mixture(self) -> Iterator[Case]:
        s, router = self.sizes, Router(self.sizes.experts, self.sizes.top_k, renormalize=True)
        logits = self.made(s.tokens, s.experts, dtype=torch.float32)
        moved = logits.nbytes + s.tokens * s.top_k * 12
        yield Case(
            "route", f"{s.tokens} x {s.top_k} of {s.experts}", lambda ops: ops.route(logits, None, router), moved,
            logits.numel() * (4 + s.top_k),
        )  # fmt: skip
        gate_up = self.made(s.experts, 2 * s.expert_inner, s.expert_hidden)
        down = self.made(s.experts, s.expert_hidden, s.expert_inner)
        for count in s.expert_tokens:
            x, z = self.made(count, s.expert_hidden), self.made(count, s.experts, dtype=torch.float32)
            weights, chosen = z.softmax(-1).topk(s.top_k)
            used = len(chosen.unique()) if self.device.type != "meta" else s.experts

            def run(ops: Ops, x: Tensor = x, chosen: Tensor = chosen, weights: Tensor = weights) -> Tensor:
                return ops.experts(x, chosen, weights, gate_up, down, "silu")

            bytes_used = used * (gate_up[0].nbytes + down[0].nbytes) + 2 * x.nbytes
            work = 6 * count * s.top_k * s.expert_hidden * s.expert_inner
            yield Case("experts", f"{count} x {s.top_k} of {s.experts}", run, bytes_used, work)

    def quantised(self) -> Iterator[Case]:
        s = self.sizes
        raw = torch.randint(-100, 100, (s.inner, s.hidden), device=self.device, dtype=torch.int8)
        blocks = torch.rand(-(-s.inner // 128), s.hidden // 128, device=self.device)
        fp8 = raw.to(torch.float8_e4m3fn)
        for rows in s.rows:
            x = self.made(rows, s.hidden)

            def run(ops: Ops, x: Tensor = x) -> Tensor:
                return ops.fp8_linear(x, fp8, blocks)

            moved, flops = fp8.nbytes + x.nbytes + rows * s.inner * x.element_size(), 2 * rows * s.hidden * s.inner
            yield Case("fp8_linear", f"{rows} x {s.hidden} -> {s.inner}", run, moved, flops)

    def recurrent(self) -> Iterator[Case]:
        """Of Qwen3.5-35B-A3B: heads of k, and of v, of which each has a state."""
        s, (k_heads, heads) = self.sizes, self.sizes.delta_heads
        size, fp32 = s.head_dim, torch.float32
        q, k = self.made(2, 1, s.prefill, k_heads, size)
        v, beta = self.made(1, s.prefill, heads, size), self.made(1, s.prefill, heads).sigmoid()
        g, state = -self.made(1, s.prefill, heads, dtype=fp32).abs(), self.made(1, heads, size, size, dtype=fp32)
        yield Case(
            "delta_rule", f"{s.prefill} x {heads} x {size}", lambda ops: ops.delta_rule(q, k, v, g, beta, state),
            q.nbytes + k.nbytes + 2 * v.nbytes + 2 * state.nbytes, 6 * v.numel() * size,
        )  # fmt: skip
        channels, taps = (2 * k_heads + heads) * size, 4
        given = self.made(s.batch, 1, channels + heads * size), self.made(s.batch, 1, 2 * heads)
        held = self.made(channels, taps), *self.made(2, heads, dtype=fp32), self.made(size)
        inputs = self.made(s.batch, taps, channels)
        states = self.made(s.batch, 2, heads, size, size, dtype=fp32)
        position = torch.full((s.batch,), 100, device=self.device)
        yield Case(
            "delta_step", f"{s.batch} x {heads} x {size} x {size}",
            lambda ops: ops.delta_step(*given, *held, inputs, states, position, 1e-6),
            states.nbytes + inputs.nbytes, 3 * states.numel(),
        )  # fmt: skip

    def vocabulary(self) -> Iterator[Case]:
        s, count = self.sizes, self.sizes.prefill
        hidden, weight = self.made(count, s.hidden).requires_grad_(), self.made(s.vocabulary, s.hidden) * 0.02
        targets = torch.randint(s.vocabulary, (count,), device=self.device)
        weight.requires_grad_()

        def trained(ops: Ops) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                return torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, targets), (hidden, weight))

        moved, flops = 2 * (hidden.nbytes + weight.nbytes), 6 * count * s.hidden * s.vocabulary
        yield Case("linear_cross_entropy", f"{count} x {s.hidden} -> {s.vocabulary}", trained, moved, flops)
        logits, rows = self.made(s.batch, s.vocabulary), s.batch
        reals = [torch.full((rows,), each, device=self.device) for each in (0.7, 0.95, 0.05)]
        top_k = torch.full((rows,), 50, dtype=torch.int32, device=self.device)
        seeds = torch.arange(rows, device=self.device)
        yield Case(
            "sample", f"{rows} x {s.vocabulary}",
            lambda ops: ops.sample(logits, reals[0], top_k, *reals[1:], seeds, seeds),
            logits.nbytes, 4 * logits.numel(),
        )  # fmt: skip

    def in_groups(self) -> Iterator[Case]:
        s = self.sizes
        for (name, form), rows in itertools.product(FORMS.items(), s.rows):
            x, parts = self.made(rows, s.hidden), self.parts(form)

            def run(ops: Ops, x: Tensor = x, parts: dict[str, Tensor] = parts, form: Grouped = form) -> Tensor:
                return ops.grouped_linear(x, parts, form, s.inner)

            moved = sum(part.nbytes for part in parts.values()) + x.nbytes + rows * s.inner * x.element_size()
            flops = 2 * rows * s.hidden * s.inner
            yield Case("grouped_linear", f"{rows} x {s.hidden} -> {s.inner}, {name}", run, moved, flops)

    def parts(self, form: Grouped) -> dict[str, Tensor]:
        """A matrix of random numbers in a form."""
        return {
            name: torch.rand(shape, device=self.device).to(dtype) if dtype.is_floating_point
            else torch.randint(127, shape, device=self.device, dtype=dtype)
            for name, (shape, dtype) in form.parts((self.sizes.inner, self.sizes.hidden)).items()
        }  # fmt: skip
