"""How latent attention (DeepSeek-V2, arXiv:2405.04434) decodes without ever making its keys and values.

Four small steps from the plain form to the absorbed one, each checked in fp64 on random numbers, then both forms of
`minillm/model/mla.py`, then what it saves at DeepSeek-V3's sizes. W_uk and W_uv are the halves of `kv_up`.
"""

import torch

from minillm.model.mla import LatentAttention
from minillm.ops import REFERENCE
from minillm.ops.visibility import Visibility
from minillm.spec import MLA, Norm, Rope

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
S, H, N, P, R, V = 50, 4, 12, 8, 32, 16  # keys, heads, values of q and k without and with position, latent, v

c, k_rope = torch.randn(S, R), torch.randn(S, P)  # all that is cached: S * (R + P) values
q_nope, q_rope = torch.randn(H, N), torch.randn(H, P)  # the query of the newest token
w_uk, w_uv = torch.randn(H, N, R), torch.randn(H, V, R)


def same(a: torch.Tensor, b: torch.Tensor) -> str:
    return f"{'x'.join(map(str, a.shape)):>7}  largest difference {(a - b).abs().max().item():.1e}"


print("0. expanded: every head makes its keys and values from the latents, k_h = [W_uk_h c | k_r], v_h = W_uv_h c")
k_nope, v = torch.einsum("hnr,sr->hsn", w_uk, c), torch.einsum("hvr,sr->hsv", w_uv, c)
k = torch.cat((k_nope, k_rope.expand(H, S, P)), dim=-1)
scores = torch.einsum("hd,hsd->hs", torch.cat((q_nope, q_rope), dim=-1), k)
attention = scores.softmax(-1)
y = torch.einsum("hs,hsv->hv", attention, v)
print(f"   keys {'x'.join(map(str, k.shape))}, values {'x'.join(map(str, v.shape))}")

print("1. a score is a product of three, and brackets may move: qᵀ (W_uk c) = (W_ukᵀ q)ᵀ c")
q_latent = torch.einsum("hn,hnr->hr", q_nope, w_uk)  # once per query, where W_uk c was once per key
print("   scores ", same(torch.einsum("hr,sr->hs", q_latent, c), torch.einsum("hn,hsn->hs", q_nope, k_nope)))

print("2. the rotary part cannot move, as its rotation sits between the two: it has a key of its own, shared by all")
print(
    "   heads. Side by side, [W_ukᵀ q | q_r] and [c | k_r] give the whole score: one key of R + P values for all heads"
)
absorbed_scores = torch.cat((q_latent, q_rope), dim=-1) @ torch.cat((c, k_rope), dim=-1).t()
print("   scores ", same(absorbed_scores, scores))

print("3. a sum of products is the product of the sum: sum_s p_s (W_uv c_s) = W_uv (sum_s p_s c_s)")
y_latent = absorbed_scores.softmax(-1) @ c  # attention over the latents themselves: the value is the key's first part
absorbed_y = torch.einsum("hvr,hr->hv", w_uv, y_latent)
print("   output ", same(absorbed_y, y))

print("4. so does minillm: a cached token at a time absorbed, many at once expanded")
module = LatentAttention(MLA(H, None, R, N, V, Rope(P, 1e4), Norm(1e-6)), 64, REFERENCE)
module.kv_up.data = torch.cat((w_uk, w_uv), dim=1).flatten(0, 1)
q = q_nope[None, :, None], q_rope[None, :, None], torch.cat((c, k_rope), dim=-1)[None]
last = Visibility(start=S - 1, count=1, window=None, padding_B=None, device=c.device)
forms = [form(*q, last) for form in (module.absorbed, module.expanded)]
print("   output ", same(forms[0][0, :, 0], forms[1][0, :, 0]))

H, N, P, R, V, S = 128, 128, 64, 512, 128, 4096
print(f"\nDeepSeek-V3, one layer, {H} heads, one new token behind {S}:")
plain, latent = H * (N + P + V), R + P
print(f"   cached values per token: {plain} as keys and values, {latent} as latents, {plain / latent:.0f} times less")
flops = {
    "keys and values cached": 2 * H * S * (N + P + V),
    "latents cached, expanded": 2 * H * S * (N + P + V) + 2 * S * R * H * (N + V),
    "latents cached, absorbed": 2 * H * S * (2 * R + P) + 2 * H * R * (N + V),
}
read = {name: 2 * S * (plain if name.startswith("keys") else latent) for name in flops}
for name, count in flops.items():
    print(f"   {name:>24}: {count / 1e9:7.2f} GFLOP, reads {read[name] / 1e6:6.1f} MB of cache in bf16")
print("   Reading is what decoding waits for, so the absorbed form wins. A prompt does its arithmetic once per key for")
print("   all of its queries, and then the expanded form needs less of it.")
