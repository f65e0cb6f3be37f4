"""A loaded checkpoint and what one does with it: `load`, then `generate` or `stream`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minillm import chat, config, families, hub, inference, linear, ops, sampling
from minillm.inference import Completion, Timings
from minillm.measure import bytes_per_step
from minillm.model import Decoder
from minillm.tokenizer import Tokenizer
from minillm.weights.load import load as load_weights

DEMO = Path(__file__).parent / "demo"  # the checkpoint that ships with the package
DEFAULT_NEW_TOKENS = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Result:
    """One completion. `token_ids` are the new ids, the stop token included; `text` is without it.

    `finish_reason` is "stop" (a stop token or stop string came) or "length".
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    timings: Timings


class LLM:
    """A model with its tokenizer, chat template and generation defaults. `model(tokens)` gives logits."""

    def __init__(self, folder: Path, values: Mapping[str, Any], model: Decoder, device: torch.device):
        self.folder = folder
        self.model = model
        self.spec = model.spec
        self.device = device
        self.bytes_per_step = bytes_per_step(model)
        has_tokenizer = (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()
        self.tokenizer = Tokenizer(folder) if has_tokenizer else None
        path = folder / "generation_config.json"
        self.generation_config = config.read_json(path) if path.is_file() else {}
        eos = self.generation_config.get("eos_token_id", values.get("eos_token_id"))
        if eos is None and self.tokenizer:
            eos = self.tokenizer.eos_id
        self.stop_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        messages: Sequence[chat.Message] | Sequence[Sequence[chat.Message]] | None = None,
        **options: Any,
    ) -> Result | list[Result]:
        """Complete a text, a list of ids, a conversation, or a list of either as one batch.

        Options: max_new_tokens, stop (strings), ignore_eos, tools, and the fields of `sampling.Sampling`; what is not
        given comes from generation_config.json. Raises ValueError for a prompt or option that cannot be.
        """
        prompts, single = self._prompts(prompt, prompt_ids, messages, options.pop("tools", None))
        rows, timings = self._rows(prompts, **options), Timings()
        for _ in inference.generate(self.model, rows, timings):
            pass
        results = [result(row, timings) for row in rows]
        return results[0] if single else results

    def stream(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[chat.Message] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The text of one completion piece by piece, never half a character; takes what `generate` takes."""
        row, timings = self.completion(prompt, prompt_ids=prompt_ids, messages=messages, **options), Timings()
        return (piece for _, piece in inference.generate(self.model, [row], timings))

    def completion(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[chat.Message] | None = None,
        **options: Any,
    ) -> Completion:
        """One checked request, ready for `inference.generate`."""
        prompts, single = self._prompts(prompt, prompt_ids, messages, options.pop("tools", None))
        if not single:
            raise ValueError("a list of prompts cannot be streamed; use generate()")
        return self._rows(prompts, **options)[0]

    def chat_prompt(self, messages: Sequence[chat.Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The ids of a conversation through the checkpoint's chat template."""
        tokenizer = self._need_tokenizer()
        source = chat.find(self.folder, tokenizer.config, tools=bool(tools))
        if source is None:
            raise ValueError(f"{self.folder}: no chat template; give a plain prompt instead of messages")
        text = chat.ChatTemplate(source, tokenizer.special).render(messages, tools=tools)
        return tokenizer.encode(text, special=False)

    def _prompts(self, prompt: Any, prompt_ids: Any, messages: Any, tools: Any) -> tuple[list[list[int]], bool]:
        """Prompts as ids, and whether the caller gave one and not a list."""
        if sum(given is not None for given in (prompt, prompt_ids, messages)) != 1:
            raise ValueError("give exactly one of prompt, prompt_ids and messages")
        if prompt is not None:
            single = isinstance(prompt, str)
            prompts = [self._need_tokenizer().encode(text) for text in ([prompt] if single else prompt)]
        elif messages is not None:
            single = not messages or isinstance(messages[0], Mapping)
            prompts = [self.chat_prompt(each, tools) for each in ([messages] if single else messages)]
        else:
            rows = prompt_ids.tolist() if isinstance(prompt_ids, torch.Tensor) else list(prompt_ids)
            single = not rows or not isinstance(rows[0], Sequence)
            prompts = [list(map(int, ids)) for ids in ([rows] if single else rows)]
        if not prompts:
            raise ValueError("the list of prompts is empty; give at least one")
        for ids in prompts:
            self._check(ids)
        return prompts, single

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise ValueError("the prompt is empty and this tokenizer adds no BOS; give at least one token")
        if not 0 <= min(ids) <= max(ids) < self.spec.vocab_size:
            worst = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(f"token id {worst} is outside the vocabulary of {self.spec.vocab_size}")
        if len(ids) >= self.spec.context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the context {self.spec.context}; leave room for new text"
            )

    def _rows(
        self,
        prompts: list[list[int]],
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **options: Any,
    ) -> list[Completion]:
        limit = max_new_tokens
        if limit is None:
            limit = self.generation_config.get("max_new_tokens") or DEFAULT_NEW_TOKENS
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"max_new_tokens is {limit!r}, it must be a whole number of at least 1")
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise ValueError("a stop string is empty; every text contains it")
        room = self.spec.context - max(map(len, prompts))
        if max_new_tokens is not None and limit > room:
            print(f"minillm: {limit} new tokens asked for, the context has room for {room}", file=sys.stderr)
        template = Completion(
            prompt=[],
            sampling=self.sampling(**options),
            max_new_tokens=0,
            stop_ids=frozenset() if ignore_eos else self.stop_ids,
            stops=stops,
            tokenizer=self.tokenizer,
        )
        return [
            replace(template, prompt=ids, max_new_tokens=min(limit, self.spec.context - len(ids)), token_ids=[])
            for ids in prompts
        ]

    def sampling(self, **options: Any) -> sampling.Sampling:
        """The checkpoint's defaults with the given fields in their place; None means not given."""
        given = {name: value for name, value in options.items() if value is not None}
        fields = set(sampling.Sampling.__dataclass_fields__)
        if unknown := sorted(set(given) - fields):
            raise ValueError(f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
        return sampling.Sampling(**{**sampling.defaults(self.generation_config), **given})

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{self.folder}: no tokenizer.json or tokenizer.model; give the prompt as ids")
        return self.tokenizer


def result(row: Completion, timings: Timings) -> Result:
    assert row.finish_reason is not None
    return Result(row.text, row.token_ids, row.prompt, row.finish_reason, timings)


def load(
    path: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    kernels: ops.Kernels = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LLM:
    """Load a checkpoint folder or a Hugging Face id; without one, the demonstration checkpoint of the package.

    `dtype` "auto" is the one the checkpoint is stored in, or float32 where this CPU has no fast arithmetic for it.
    `kernels` "auto" takes the fastest path for the device, which on a CPU stores bf16 weights in oneDNN's layout (no
    plain `weight` remains to look at); "reference" keeps plain parameters. Raises ValueError for whatever is wrong.
    """
    folder = DEMO if path is None else hub.resolve(path)
    values = config.read(folder)
    scheme = config.quantization(values)
    if scheme:
        raise ValueError(
            f"{folder}: quantised with {scheme}, which is not supported yet; use the unquantised checkpoint"
        )
    spec, rules, read = families.resolve(values)
    if read.unread:
        print(f"minillm: config.json keys not understood and ignored: {', '.join(read.unread)}", file=sys.stderr)
    target = _device(device)
    chosen = _dtype(dtype, read.dtype, target)
    with torch.device("meta"):
        model = Decoder(spec, ops.select(kernels, target, chosen))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    parameters, _ = load_weights(folder, rules, model.destinations(), shapes, chosen, target, progress)
    model.load_state_dict(parameters, assign=True)
    model.requires_grad_(False).eval()
    del parameters
    llm = LLM(folder, values, model, target)
    if kernels == "auto" and linear.can_pack(chosen, target):
        model.pack()
    return llm


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not here: {torch.cuda.device_count()} GPUs found; use --device cpu")
    return target


def _dtype(dtype: str | torch.dtype, stored: str | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not supported; use auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    chosen = DTYPES.get(stored or "float32", torch.float32)
    if device.type == "cpu" and chosen != torch.float32 and not linear.can_pack(chosen, device):
        print(f"minillm: this CPU has no fast {stored} arithmetic: running in float32", file=sys.stderr)
        return torch.float32
    return chosen
