"""From logits to the next token: pure functions on one row of logits, in the order that transformers applies them.

bias -> penalties -> temperature -> top-k -> top-p -> min-p -> draw
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from minillm.guard.screen import note, shown
from minillm.ops.draw import MIN_TEMPERATURE, distribution

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
MOST_BIAS = 100

# Keys of a generation_config.json that other parts read, or that change no token of a plain continuation.
READ_ELSEWHERE = frozenset(
    """_from_model_config bos_token_id cache_implementation chat_format do_sample eos_token_id max_length max_new_tokens
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id return_dict_in_generate
    stop_strings transformers_version use_cache""".split()
)


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and the neutral penalties do nothing.

    `seed` makes the draws of a prompt reproducible, alone or in a batch. `logit_bias` is added to the logits of the
    token ids that it names. Raises ValueError outside `LIMITS`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            kind: Any
            kind, words = (Integral, "a whole number") if name in ("top_k", "seed") else (Real, "a number")
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                raise ValueError(f"{name} is {shown(value)}, it must be {words} from {low} to {high}")
        if self.top_p == 0:
            raise ValueError("top_p is 0, which leaves no token; use temperature 0 for greedy")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}, it must be 0 (greedy) or at least {MIN_TEMPERATURE}")
        for token, bias in (self.logit_bias or {}).items():
            if isinstance(token, bool) or not isinstance(token, Integral):
                raise ValueError(f"logit_bias names {shown(token)}, it must be the id of a token")
            if isinstance(bias, bool) or not isinstance(bias, Real) or not -MOST_BIAS <= bias <= MOST_BIAS:
                raise ValueError(
                    f"logit_bias of token {token} is {shown(bias)}, it must be from {-MOST_BIAS} to {MOST_BIAS}"
                )

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json asks for: its sampling where `do_sample` is on, else greedy; and penalties."""
    names = {field.name for field in fields(Sampling)} - {"seed", "temperature", "logit_bias"}
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
    known = READ_ELSEWHERE | {field.name for field in fields(Sampling)} - {"logit_bias"}
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
        counts_V = torch.bincount(torch.tensor(generated, dtype=torch.int64, device="cpu"), minlength=vocab_size)
        self.counts_V = counts_V.to(device, torch.int32)  # in the generated text
        self.count = len(generated)
        self._one = torch.ones(1, dtype=torch.int32, device=device)

    def push(self, token_1: Tensor) -> None:
        """Count one more token, int64 `[1]`, which need not have reached the host."""
        self.counts_V.index_add_(0, token_1, self._one)
        self.count += 1


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
    """The distribution that a setting draws from, fp32 `[V]`; see `draw.distribution`."""
    return distribution(logits_V, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)


def repeated(sampling: Sampling, n: Any) -> list[Sampling]:
    """The settings of each of `n` completions of one prompt: number i is drawn with seed + i. Raises ValueError."""
    if isinstance(n, bool) or not isinstance(n, Integral) or int(n) < 1:
        raise ValueError(f"n is {n!r}, it must be a whole number of at least 1")
    if sampling.temperature == 0 and int(n) > 1:
        note(f"temperature 0 is greedy: all {n} completions of a prompt are the same")
    if (seed := sampling.seed) is None:
        return [sampling] * int(n)
    return [replace(sampling, seed=(seed + i) % 2**63) for i in range(int(n))]


def as_tensors(wanted: Sequence[Sampling], device: torch.device | str = "cpu") -> list[Tensor]:
    """What `sample` goes by of each row: temperature fp32, top-k int32, top-p and min-p fp32, `[B]` each."""
    kinds = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}
    return [
        torch.tensor([getattr(each, name) for each in wanted], dtype=kind, device=device)
        for name, kind in kinds.items()
    ]
