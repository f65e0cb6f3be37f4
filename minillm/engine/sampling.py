"""From logits to the next token: pure functions on one row of logits, in the order that transformers applies them.

penalties -> temperature -> top-k -> top-p -> min-p -> draw
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (0, 2**63 - 1),
}
MIN_TEMPERATURE = 1e-6  # below it logits divided by it leave fp32

# Keys of a generation_config.json that other parts read, or that change no token of a plain continuation.
READ_ELSEWHERE = frozenset(
    """_from_model_config bos_token_id cache_implementation chat_format do_sample eos_token_id max_length max_new_tokens
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id return_dict_in_generate
    transformers_version use_cache""".split()
)


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and the neutral penalties do nothing.

    `seed` makes the draws of a prompt reproducible, alone or in a batch. Raises ValueError outside `LIMITS`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            kind, words = (Integral, "a whole number") if name in ("top_k", "seed") else (Real, "a number")
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= float(value) <= high:
                raise ValueError(f"{name} is {value!r}, it must be {words} from {low} to {high}")
        if self.top_p == 0:
            raise ValueError("top_p is 0, which leaves no token; use temperature 0 for greedy")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}, it must be 0 (greedy) or at least {MIN_TEMPERATURE}")

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json asks for: its sampling where `do_sample` is on, else greedy; and penalties."""
    names = {field.name for field in fields(Sampling)} - {"seed", "temperature"}
    stated = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    if generation_config.get("do_sample") not in (True, False, None):
        raise ValueError(
            f"generation_config.json: do_sample is {generation_config['do_sample']!r}, expected true or false"
        )
    if not generation_config.get("do_sample"):
        return {**{name: value for name, value in stated.items() if name.endswith("penalty")}, "temperature": 0.0}
    temperature = generation_config.get("temperature")
    stated["temperature"] = 1.0 if temperature is None else temperature
    if isinstance(temperature, float) and 0 < temperature < MIN_TEMPERATURE:
        stated["temperature"] = 0.0  # published configs write a tiny one for greedy
    if stated.get("top_k") == -1:
        stated["top_k"] = 0  # the way of vLLM to say all
    return stated


def unsupported(generation_config: Mapping[str, Any]) -> list[str]:
    """Keys with a value that ask for something generation here does not do."""
    known = READ_ELSEWHERE | {field.name for field in fields(Sampling)}
    neutral = {
        "num_beams": 1,
        "typical_p": 1.0,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "diversity_penalty": 0.0,
    }
    return sorted(
        key
        for key, value in generation_config.items()
        if key not in known and value not in (None, False, [], {}) and neutral.get(key) != value
    )


class History:
    """Which tokens a sequence holds, kept up to date token by token: what the penalties go by."""

    def __init__(
        self,
        vocab_size: int,
        prompt: Sequence[int],
        generated: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ):
        self.in_prompt_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.in_prompt_V[torch.tensor(prompt, device=device)] = True
        counts_V = torch.bincount(torch.tensor(generated, dtype=torch.int64), minlength=vocab_size)
        self.counts_V = counts_V.to(device, torch.int32)  # in the generated text
        self._one = torch.ones(1, dtype=torch.int32, device=device)

    def push(self, token_1: Tensor) -> None:
        """Count one more token, int64 `[1]`, which need not have reached the host."""
        self.counts_V.index_add_(0, token_1, self._one)


def penalise(logits_V: Tensor, sampling: Sampling, history: History) -> Tensor:
    """Repetition penalty over the prompt and the text (Keskar et al., arXiv:1909.05858): positive logits are divided
    by it, negative ones multiplied. Presence and frequency penalty over the generated text only, as OpenAI defines
    them: logit - presence * [count > 0] - frequency * count."""
    logits_V = logits_V.float()
    generated_V = history.counts_V > 0
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        punished_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        logits_V = torch.where(history.in_prompt_V | generated_V, punished_V, logits_V)
    return logits_V - sampling.presence_penalty * generated_V - sampling.frequency_penalty * history.counts_V


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The distribution drawn from, fp32 `[V]`: softmax(logits / temperature), cut by top-k, then top-p, then min-p."""
    logits_V = logits_V.float() / sampling.temperature
    if 0 < sampling.top_k < logits_V.shape[-1]:
        least = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    if sampling.top_p < 1:
        ascending, order = logits_V.sort()
        cut = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        cut[-1] = False  # the likeliest token always stays
        logits_V = logits_V.masked_fill(cut.scatter(0, order, cut), float("-inf"))
    chances_V = logits_V.softmax(-1)
    if sampling.min_p > 0:
        chances_V = chances_V.masked_fill(chances_V < sampling.min_p * chances_V.max(), 0.0)
        chances_V = chances_V / chances_V.sum()
    return chances_V


def as_tensors(wanted: Sequence[Sampling], device: torch.device | str = "cpu") -> list[Tensor]:
    """What `sample` goes by of each row: temperature fp32, top-k int32, top-p and min-p fp32, `[B]` each."""
    kinds = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}
    return [
        torch.tensor([getattr(each, name) for each in wanted], dtype=kind, device=device)
        for name, kind in kinds.items()
    ]


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
    return drawn(found_B, logits_BV, temperature_B, top_k_B, top_p_B, min_p_B, seed_B, position_B)


def drawn(
    found_B: Tensor,
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    seed_B: Tensor,
    position_B: Tensor,
) -> Tensor:
    """`sample`, given the likeliest token of each row, or -1: what a row without a temperature keeps."""
    for row in (temperature_B > 0).nonzero()[:, 0].tolist():
        if found_B[row] < 0:
            continue
        temperature = max(temperature_B[row].item(), MIN_TEMPERATURE)  # which fp32 may have rounded down
        cuts = (int(top_k_B[row]), top_p_B[row].item(), min_p_B[row].item())
        chances_V = probabilities(logits_BV[row], Sampling(temperature, *cuts))
        kept = chances_V.nonzero()[:, 0]
        clock = -torch.log1p(-uniform(int(seed_B[row]), int(position_B[row]), kept))
        found_B[row] = kept[(chances_V[kept].log() - clock.log()).argmax()]
    return found_B


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
