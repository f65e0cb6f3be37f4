"""Where tokens go, and the picks sorted by expert: two launches where PyTorch needs about twenty.

    scores -> the best k (of the best groups) -> weights           as in `minillm/ops/routing.py`

Written out, each step of a router, a softmax, a top-k, a gather, a sum, a division, is a trip to memory for next to no
work, and sorting the picks for the grouped products takes as many again. Here a program holds the E scores of a token
in registers, picks the best k times over, and weighs them. On the way it counts: adding one to its expert's counter
gives each pick its place among that expert's (the sort of the first kernel's picks is a counting sort, and its counting
is done when they are made). The second kernel adds the places to where each expert begins.

Places depend on the order in which programs run. Nothing else does: a row of a product does not depend on its
neighbours, and the sum over a token's experts is taken in the order of its picks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

SCORES = {"softmax": 0, "sigmoid": 1, "softmax_chosen": 2}
LARGEST = 1024  # experts that a program holds
PLACES = 64  # picks of a program that sorts
PAD = 16  # counters lie 64 bytes apart: programs that add to different ones do not wait for each other


@triton.jit
def best_groups(choice, groups, BLOCK_G: tl.constexpr, TOP_GROUPS: tl.constexpr, TWO: tl.constexpr):
    """Which rows of scores `[BLOCK_G, BLOCK_M]` are the best by their best, or by the sum of their best two."""
    members = tl.arange(0, choice.shape[1])[None, :]
    best = tl.max(choice, axis=1)
    if TWO:
        first = tl.min(tl.where(choice == best[:, None], members, choice.shape[1]), axis=1)
        best += tl.max(tl.where(members == first[:, None], float("-inf"), choice), axis=1)
    rows = tl.arange(0, BLOCK_G)
    free = rows < groups
    for _ in tl.static_range(TOP_GROUPS):
        high = tl.max(tl.where(free, best, float("-inf")), axis=0)
        at = tl.min(tl.where(free & (best == high), rows, BLOCK_G), axis=0)
        free = free & (rows != at)
    return (rows < groups) & (free == 0)


@triton.jit
def route_kernel(
    z_f32_ptr, correction_f32_ptr, chosen_i64_ptr, weights_f32_ptr, place_i32_ptr, count_i32_ptr,
    z_t, groups, members, scale, HAS_CORRECTION: tl.constexpr, SCORE: tl.constexpr, RENORMALIZE: tl.constexpr,
    TOP_K: tl.constexpr, TOP_GROUPS: tl.constexpr, TWO: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_M)[None, :]
    free = (row < groups) & (column < members)
    expert = tl.where(free, row * members + column, BLOCK_G * BLOCK_M)
    z = tl.load(z_f32_ptr + token * z_t + expert, mask=free, other=float("-inf"))
    score = z
    if SCORE == 0:
        shifted = tl.exp(z - tl.max(tl.max(z, axis=1), axis=0))
        score = shifted / tl.sum(tl.sum(shifted, axis=1), axis=0)
    elif SCORE == 1:
        score = tl.sigmoid(z)
    choice = score
    if HAS_CORRECTION:
        choice += tl.load(correction_f32_ptr + expert, mask=free, other=0.0)
    choice = tl.where(free, choice, float("-inf"))
    if TOP_GROUPS:
        free = free & best_groups(choice, groups, BLOCK_G, TOP_GROUPS, TWO)[:, None]
    picks = tl.arange(0, BLOCK_K)
    chosen, weights = tl.zeros((BLOCK_K,), tl.int32), tl.zeros((BLOCK_K,), tl.float32)
    for pick in tl.static_range(TOP_K):
        high = tl.max(tl.max(tl.where(free, choice, float("-inf")), axis=1), axis=0)
        at = tl.min(tl.min(tl.where(free & (choice == high), expert, BLOCK_G * BLOCK_M), axis=1), axis=0)
        at = tl.minimum(at, groups * members - 1)  # a token of NaNs finds no best one; its result is NaN whoever it is
        value = tl.sum(tl.sum(tl.where(expert == at, score, 0.0), axis=1), axis=0)
        chosen, weights = tl.where(picks == pick, at, chosen), tl.where(picks == pick, value, weights)
        free = free & (expert != at)
    inside = picks < TOP_K
    if SCORE == 2:
        weights = tl.exp(weights - tl.max(tl.where(inside, weights, float("-inf")), axis=0))
        weights = weights / tl.sum(tl.where(inside, weights, 0.0), axis=0)
    if RENORMALIZE:
        weights = weights / (tl.sum(tl.where(inside, weights, 0.0), axis=0) + 1e-20)
    place = tl.atomic_add(count_i32_ptr + chosen * PAD, 1, mask=inside, sem="relaxed")
    at = token * TOP_K + picks
    tl.store(chosen_i64_ptr + at, chosen.to(tl.int64), mask=inside)
    tl.store(weights_f32_ptr + at, weights * scale, mask=inside)
    tl.store(place_i32_ptr + at, place, mask=inside)


@triton.jit
def count_kernel(chosen_i64_ptr, place_i32_ptr, count_i32_ptr, picks, BLOCK: tl.constexpr, PAD: tl.constexpr):
    """Places for picks that were not made here."""
    pick = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(chosen_i64_ptr + pick, mask=pick < picks, other=0)
    place = tl.atomic_add(count_i32_ptr + expert * PAD, 1, mask=pick < picks, sem="relaxed")
    tl.store(place_i32_ptr + pick, place, mask=pick < picks)


@triton.jit
def sort_kernel(
    chosen_i64_ptr, place_i32_ptr, count_i32_ptr, order_i32_ptr, expert_i32_ptr, first_i32_ptr, end_i32_ptr,
    picks, experts, blocks, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Each pick to its place in the order, and for each block of ROWS sorted picks of one expert, which and where."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, BLOCK_E)[None, :]
    count = tl.load(count_i32_ptr + number * PAD, mask=number < experts, other=0)
    expert = tl.load(chosen_i64_ptr + index, mask=index < picks, other=0).to(tl.int32)[:, None]
    begin = tl.sum(tl.where(number < expert, count, 0), axis=1)
    place = tl.load(place_i32_ptr + index, mask=index < picks, other=0)
    tl.store(order_i32_ptr + begin + place, index, mask=index < picks)
    filled = (count + ROWS - 1) // ROWS  # blocks of each expert
    owner = tl.sum((tl.cumsum(filled, axis=1) <= index[:, None]).to(tl.int32), axis=1)
    before = number < tl.minimum(owner, experts)[:, None]
    first = tl.sum(tl.where(before, count, 0), axis=1)
    within = index - tl.sum(tl.where(before, filled, 0), axis=1)
    tl.store(expert_i32_ptr + index, tl.minimum(owner, experts), mask=index < blocks)
    tl.store(first_i32_ptr + index, first + within * ROWS, mask=index < blocks)
    own = tl.sum(tl.where(number == owner[:, None], count, 0), axis=1)
    tl.store(end_i32_ptr + index, first + own, mask=index < blocks)


def route(
    logits: Tensor,
    correction: Tensor | None,
    top_k: int,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: str = "max",
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """logits fp32 `[N, E]`, correction fp32 `[E]`; the rest as in `spec.Router` -> experts int64 and weights fp32
    `[N, k]`, best first (of equals the one with the lower number), and places: int32 `[N, k]` and counts int32 `[E]`
    (apart in memory, as `sort_kernel` wants them). Raises ValueError for what does not fit."""
    tokens, experts = logits.shape
    if score not in SCORES or group_score not in ("max", "top2_sum"):
        raise ValueError(f"route: score {score!r} with groups by {group_score!r}; expected one of {', '.join(SCORES)} "
                         "with max or top2_sum")  # fmt: skip
    if experts > LARGEST or experts % num_groups or not 0 < top_k <= experts // num_groups * top_groups:
        raise ValueError(f"route: {top_k} of {experts} experts in {top_groups} of {num_groups} groups; there may be "
                         f"{LARGEST} in equal groups")  # fmt: skip
    for name, each, shape in (("logits", logits, (tokens, experts)), ("correction", correction, (experts,))):
        if each is not None and (each.dtype != torch.float32 or each.shape != shape or each.stride(-1) != 1):
            raise ValueError(f"route: {name} are {each.dtype} {list(each.shape)} with strides {each.stride()}, "
                             f"expected torch.float32 {list(shape)}")  # fmt: skip
    chosen = torch.empty(tokens, top_k, dtype=torch.int64, device=logits.device)
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    place = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    count = counters(experts, logits.device)
    if tokens:
        members, two = experts // num_groups, group_score == "top2_sum"
        with on_device_of(logits):
            route_kernel[(tokens,)](
                logits, correction, chosen, weights, place, count, logits.stride(0), num_groups, members, scale,
                HAS_CORRECTION=correction is not None, SCORE=SCORES[score], RENORMALIZE=renormalize, TOP_K=top_k,
                TOP_GROUPS=top_groups if num_groups > 1 else 0, TWO=two, BLOCK_G=triton.next_power_of_2(num_groups),
                BLOCK_M=triton.next_power_of_2(members), BLOCK_K=triton.next_power_of_2(top_k), PAD=PAD,
                num_warps=1 if experts <= 256 else 4,
            )  # fmt: skip
    return chosen, weights, (place, count)


def counters(experts: int, device: torch.device) -> Tensor:
    """A zero for each expert, int32 `[E]`, PAD apart in memory."""
    return torch.zeros(experts, PAD, dtype=torch.int32, device=device)[:, 0]


def places(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Each pick's place among those of its expert, int32 like chosen int64 `[N, k]`, and counts int32 `[E]`."""
    place = torch.empty(chosen.shape, dtype=torch.int32, device=chosen.device)
    count = counters(experts, chosen.device)
    if chosen.numel():
        with on_device_of(chosen):
            count_kernel[(triton.cdiv(chosen.numel(), 256),)](chosen, place, count, chosen.numel(), BLOCK=256, PAD=PAD)
    return place, count


def blocks_of(chosen: Tensor, place: Tensor, count: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of picks P = N k: their numbers sorted by expert, `[P]`; and of each block of at most `rows` of them its expert
    (E for those beyond the last), its first sorted row and the row behind its expert's last, `[P / rows + E]`: all
    int32. How many blocks there are is a bound that needs no look at the device."""
    picks, experts = chosen.numel(), len(count)
    blocks = triton.cdiv(picks, rows) + min(experts, picks)
    order = torch.empty(picks, dtype=torch.int32, device=chosen.device)
    expert, first, end = (torch.empty(blocks, dtype=torch.int32, device=chosen.device) for _ in range(3))
    size = PLACES if experts <= 256 else PLACES // 4  # what registers hold of places times experts
    with on_device_of(chosen):
        sort_kernel[(triton.cdiv(max(picks, blocks), size),)](
            chosen, place, count, order, expert, first, end, picks, experts, blocks, ROWS=rows, BLOCK=size,
            BLOCK_E=triton.next_power_of_2(experts), PAD=PAD,
        )  # fmt: skip
    return order, expert, first, end
