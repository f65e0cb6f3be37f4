"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), in two forms that compute the same.

    c = norm(W_dkv x)                     the latent, of kv_rank values: all that is cached, with the rotary key k_r
    k_h = [W_uk_h c | k_r],  v_h = W_uv_h c,  y = W_out [softmax(score q_hᵀ k_h) v_h for each head h]

Expanded, for a prompt: k and v of every head are computed from the latents. Absorbed, for decoding: as
q_hᵀ (W_uk_h c) = (W_ukᵀ_h q_h)ᵀ c, the query moves into the latent space instead, and attention runs over the cache as
it is, one key and value for all heads. `examples/absorb_mla.py` derives it step by step.

Shapes: B batch, T new tokens, S keys, H heads, N nope_dim, P rotary values, R kv_rank, V v_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minillm.model.attention import Step, opened, tempered
from minillm.model.cache import LatentCache
from minillm.model.indexer import Asked, Indexer, of_blocks, of_rows
from minillm.model.linear import Linear
from minillm.model.lora.adapted import adapted
from minillm.model.norm import Norm
from minillm.model.pools import LatentPool
from minillm.ops import Ops
from minillm.ops.paged import Paged
from minillm.ops.sparse import Places
from minillm.ops.visibility import Visibility
from minillm.spec import MLA, Rope
from minillm.spec import Indexer as IndexerSpec
from minillm.spec.rope import RopeLayout


class LatentAttention(nn.Module):
    """x `[B, T, hidden]` -> `[B, T, hidden]`."""

    def __init__(self, spec: MLA, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.scale = spec.score_factor * (spec.nope_dim + spec.rope.dim) ** -0.5
        q = spec.num_heads * (spec.nope_dim + spec.rope.dim)
        if spec.q_rank is not None:
            self.q_down = Linear(hidden_size, spec.q_rank, ops, bias=spec.bias)
            self.q_norm = Norm(spec.latent_norm, spec.q_rank, ops)
        self.q = Linear(hidden_size if spec.q_rank is None else spec.q_rank, q, ops)
        self.kv_down = Linear(hidden_size, spec.kv_rank + spec.rope.dim, ops, bias=spec.bias)
        self.kv_norm = Norm(spec.latent_norm, spec.kv_rank, ops)
        # W_uk and W_uv of each head, one under the other. No Linear: the absorbed form needs the plain matrices.
        self.kv_up = nn.Parameter(torch.empty(spec.num_heads * (spec.nope_dim + spec.v_dim), spec.kv_rank))
        if self.kv_up.device.type != "meta":
            nn.init.normal_(self.kv_up, std=0.02)
        self.out = Linear(values := spec.num_heads * spec.v_dim, hidden_size, ops, bias=spec.bias)
        gates = spec.num_heads if spec.gate and spec.gate.width == "head" else values
        self.gate = Linear(hidden_size, gates, ops) if spec.gate else None
        self.sinks = nn.Parameter(torch.zeros(spec.num_heads)) if spec.sinks else None
        self.indexer = None
        if isinstance(spec.indexer, IndexerSpec):
            assert spec.q_rank is not None, "an indexer asks by the latent of the queries"
            self.indexer = Indexer(spec.indexer, hidden_size, spec.q_rank, ops)
        self.lent_as: int | None = None  # this layer's number, where its choice of keys counts in others

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        over = self._over if step.ragged is None else self._over_blocks
        y = rearrange(over(*self.project(x, step), step, cache), "B H T V -> B T (H V)")
        return self.out(y if self.gate is None else opened(y, self.gate(x), self.spec))

    def _over(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, asked: Asked | None, step: Step, cache: LatentCache | None
    ) -> Tensor:
        """y `[B, H, T, V]` of rows that are aligned."""
        visible, slots = of_rows(self, asked, step, cache), step.slots[None]
        if cache is not None and slots is not None and visible.position_B is not None:
            latent = cache.put(latent, slots)
        elif cache is not None:
            latent = cache.update(latent, step.start)
        attend = self.absorbed if cache is not None and q_nope.shape[2] == 1 else self.expanded
        return attend(q_nope, q_rope, latent, visible)

    def _over_blocks(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, asked: Asked | None, step: Step, pool: LatentPool
    ) -> Tensor:
        """y `[1, H, N, V]` of tokens of many sequences."""
        ragged, parts = step.ragged, []
        assert ragged is not None
        pool.put(latent, ragged.slots[None])
        chosen = of_blocks(self, asked, step, pool)
        if ragged.singles:
            q = q_nope[:, :, : ragged.singles], q_rope[:, :, : ragged.singles]
            if chosen.singles is None:
                parts.append(self.absorbed(*q, pool.rows, ragged.paged[None]))
            else:
                parts.append(self._over_chosen(*q, pool, ragged.paged[None], chosen.singles))
        for piece, visible in zip(ragged.pieces, chosen.pieces, strict=True):
            q = q_nope[:, :, piece.tokens], q_rope[:, :, piece.tokens]
            parts.append(self.expanded(*q, pool.read(piece.keys[None]), visible))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _over_chosen(self, q_nope: Tensor, q_rope: Tensor, pool: LatentPool, paged: Paged, places: Places) -> Tensor:
        """y `[1, H, N, V]` of a token of each of N sequences, over the latents at these places alone."""
        latent = pool.rows[0][paged.slots(places.position[:, 0])]  # [N, P, R + P]
        nope, turned = q_nope.transpose(0, 2), q_rope.transpose(0, 2)  # [N, H, 1, ...]
        return self.absorbed(nope, turned, latent, places.visible()).transpose(0, 2)

    def project(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor, Asked | None]:
        """q without position `[B, H, T, N]`, rotated q `[B, H, T, P]`, what is cached, `[B, T, R + P]`, and what keys
        are chosen by."""
        spec = self.spec
        q_latent = x if spec.q_rank is None else self.q_norm(self.q_down(x))
        asked = None
        if self.indexer is not None:
            assert isinstance(spec.rope, Rope), "an indexer turns its keys as the layer does"
            cos, sin = step.rotary[spec.rope]
            last = spec.rope.dim if self.indexer.spec.last else 0

            def turned(heads: Tensor, layout: RopeLayout) -> Tensor:
                # The last values go to the front and stay there: q k does not see in which order they lie.
                return self.ops.rope(heads.roll(last, -1) if last else heads, cos, sin, layout)

            asked = self.indexer.asked(x, q_latent, turned)
        q = rearrange(self.q(q_latent), "B T (H D) -> B T H D", H=spec.num_heads)
        if spec.temperature is not None:  # before the rotation, which keeps lengths
            assert step.positions is not None
            q = (q * tempered(step.positions, spec.temperature)[..., None, None]).to(q.dtype)
        q_nope, q_rope = q.split((spec.nope_dim, spec.rope.dim), dim=-1)
        latent, k_rope = self.kv_down(x).split((spec.kv_rank, spec.rope.dim), dim=-1)
        if isinstance(spec.rope, Rope):
            cos, sin = step.rotary[spec.rope]
            q_rope = self.ops.rope(q_rope, cos, sin, spec.rope.layout)
            k_rope = self.ops.rope(k_rope.unsqueeze(2), cos, sin, spec.rope.layout).squeeze(2)
        kept = torch.cat((self.kv_norm(latent), k_rope), dim=-1)
        return q_nope.transpose(1, 2), q_rope.transpose(1, 2), kept, asked

    def expanded(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, visible: Visibility) -> Tensor:
        """Attention over the keys and values of each head, made from the cached `[B, S, R + P]`; `[B, H, T, V]`."""
        spec = self.spec
        c, k_rope = latent.split((spec.kv_rank, spec.rope.dim), dim=-1)
        kv, changed = self.ops.linear(c, self.kv_up), adapted(self)
        kv = kv if changed is None else changed.added(self, "kv_up", c, kv)
        kv = rearrange(kv, "B S (H D) -> B H S D", H=spec.num_heads)
        k_nope, v = kv.split((spec.nope_dim, spec.v_dim), dim=-1)
        k = torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, spec.num_heads, -1, -1)), dim=-1)
        return self.ops.attention(torch.cat((q_nope, q_rope), dim=-1), k, v, visible, self.scale, None, self.sinks)

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, visible: Visibility | Paged) -> Tensor:
        """The same with W_uk moved to the query and W_uv behind the sum: one kv head, of R + P and R values."""
        spec = self.spec
        changed = adapted(self)
        kv_up = self.kv_up if changed is None else changed.matrix(self, "kv_up")
        up = rearrange(kv_up, "(H D) R -> H D R", H=spec.num_heads)
        w_uk, w_uv = up.split((spec.nope_dim, spec.v_dim), dim=1)
        q = torch.cat((q_nope @ w_uk, q_rope), dim=-1)  # [B, H, T, R + P]
        attend = self.ops.paged_latent_attention if isinstance(visible, Paged) else self.ops.latent_attention
        y = attend(q, latent, spec.kv_rank, visible, self.scale, self.sinks)  # [B, H, T, R]
        return y @ w_uv.transpose(1, 2)
