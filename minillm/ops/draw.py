"""From logits to the next token of each row: the cuts (temperature, top-k, top-p, min-p), and a draw that is a function
of seed, position and token. The settings as people give them are in `engine/sampling.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-6  # below it logits divided by it leave fp32


def distribution(
    logits_V: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The distribution drawn from, fp32 `[V]`: softmax(logits / temperature), cut by top-k, then top-p, then min-p."""
    logits_V = logits_V.float() / temperature
    if 0 < top_k < logits_V.shape[-1]:
        least = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    chances_V = logits_V.softmax(-1)
    if top_p < 1:
        chances_V = logits_V.masked_fill(~nucleus(chances_V, top_p), float("-inf")).softmax(-1)
    if min_p > 0:
        chances_V = chances_V.masked_fill(chances_V < min_p * chances_V.max(), 0.0)
        chances_V = chances_V / chances_V.sum()
    return chances_V


def nucleus(chances_V: Tensor, top_p: float) -> Tensor:
    """All but the least likely tokens, as many as have at most 1 - `top_p` together: bool `[V]`. Those below 1 / V of
    that need not be sorted."""
    few_V = chances_V >= min((1 - top_p) / len(chances_V), chances_V.max().item())
    rest = 1 - chances_V[few_V].sum()
    ascending_K, order_K = chances_V[few_V].sort(stable=True)
    cut_K = rest + ascending_K.cumsum(-1) <= 1 - top_p
    cut_K[-1] = False  # the likeliest token always stays
    chosen_K = few_V.nonzero()[:, 0][order_K[~cut_K]]
    return torch.zeros_like(few_V).index_fill(0, chosen_K, True)


def sample(
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    seed_B: Tensor,
    position_B: Tensor,
) -> Tensor:
    """The next token of each row, int64 `[B]`; -1 where its logits are not numbers to choose by.

    Logits of any dtype; settings as `as_tensors` makes them; seed and position int64: the row's, and how many tokens it
    has drawn before. These two and nothing else decide the draw, on every device: the token
    is the one of those kept with the largest z - log(-log(1 - u)), z its logit over the temperature (the Gumbel-max
    trick, which draws from softmax(z)), and u of each token comes from `uniform`.
    """
    best_B = logits_BV.argmax(-1)  # of any NaN the first
    found_B = torch.where(logits_BV.gather(-1, best_B[:, None])[:, 0].isfinite(), best_B, -1)
    return drawn(race, found_B, logits_BV, temperature_B, top_k_B, top_p_B, min_p_B, seed_B, position_B)


def drawn(
    race: Callable[[Tensor, int, int, Tensor], Tensor],
    found_B: Tensor,
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    seed_B: Tensor,
    position_B: Tensor,
) -> Tensor:
    """`sample`, given an implementation of `race` and the likeliest token of each row, or -1: what a row without a
    temperature keeps."""
    for row in (temperature_B > 0).nonzero()[:, 0].tolist():
        if found_B[row] < 0:
            continue
        temperature = max(temperature_B[row].item(), MIN_TEMPERATURE)  # which fp32 may have rounded down
        cuts = (int(top_k_B[row]), top_p_B[row].item(), min_p_B[row].item())
        chances_V = distribution(logits_BV[row], temperature, *cuts)
        found_B[row] = race(chances_V, int(seed_B[row]), int(position_B[row]), found_B[row])
    return found_B


def race(chances_V: Tensor, seed: int, position: int, likeliest: Tensor) -> Tensor:
    """The token whose clock rings first: an int64."""
    kept = chances_V.nonzero()[:, 0]
    clock = -torch.log1p(-uniform(seed, position, kept))
    return kept[(chances_V[kept].log() - clock.log()).argmax()]


def uniform(seed: int, position: int, token: Tensor) -> Tensor:
    """A number from 0 to 1, both excluded, for each token: fp64. Philox 4x32-10 (Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", 2011) with the seed as its key and token and position as its counter."""
    low = 0xFFFFFFFF
    counter = [token, torch.full_like(token, position & low), torch.full_like(token, position >> 32)]
    c0, c1, c2, c3 = *counter, torch.zeros_like(token)
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        one, two = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64, of which the halves are wanted
        c0, c1, c2, c3 = (two >> 32 & low) ^ c1 ^ k0, two & low, (one >> 32 & low) ^ c3 ^ k1, one & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return (c0.double() + 0.5) * 2.0**-32
