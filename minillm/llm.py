"""A loaded checkpoint and what one does with it: `generate` and `stream`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from minillm.engine import decoding, sampling
from minillm.engine.asked import Asked
from minillm.engine.completion import Completion, Prompt, Result, Timings
from minillm.engine.requests import ids_to_stop_at, stop_strings, token_ids
from minillm.guard.files import is_there
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import note
from minillm.model.costs import bytes_per_step
from minillm.model.decoder import Decoder
from minillm.prompts import Prompts
from minillm.text import chat
from minillm.text.tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 256
ASKED = ("min_new_tokens", "logprobs", "prompt_logprobs", "guide", "raw", "adapter")
OPTIONS = ("n", "max_new_tokens", *ASKED, "stop", "stop_token_ids", "ignore_eos", "tools", "template_variables",
           "continue_final_message", "images", "audio", "videos", "max_pixels",
           *decoding.OPTIONS)  # of `generate`, beside those of sampling  # fmt: skip


class LLM:
    """A model with its tokenizer, chat template and generation defaults. `model(tokens)` gives logits."""

    def __init__(self, folder: Path, values: Mapping[str, Any], model: Decoder, device: torch.device):
        self.folder = folder
        self.values = values
        self.adapter: str | None = None  # that of requests which name none
        self.model = model
        self.spec = model.spec
        self.device = device
        self.bytes_per_step = bytes_per_step(model)
        has_tokenizer = is_there(folder / "tokenizer.json") or is_there(folder / "tokenizer.model")
        self.tokenizer = Tokenizer(folder) if has_tokenizer else None
        for remark in self.tokenizer.remarks if self.tokenizer else ():
            note(remark)
        if self.tokenizer and (size := self.tokenizer.backend.size) > self.spec.vocab_size:
            note(f"the tokenizer has ids up to {size - 1}, the model's vocabulary {self.spec.vocab_size}: they differ")
        self.prompts = Prompts(folder, values, model, self.tokenizer, device)
        path = folder / "generation_config.json"
        self.generation_config = read_json(path) if is_there(path) else {}
        textless = ["stop_strings"] if self.generation_config.get("stop_strings") and not self.tokenizer else []
        if ignored := sampling.unsupported(self.generation_config) + textless:
            note(f"generation_config.json keys without effect here: {', '.join(ignored)}")
        stated = (self.generation_config.get("eos_token_id"), values.get("eos_token_id"))
        eos = next((ids for ids in stated if ids is not None), self.tokenizer.eos_id if self.tokenizer else None)
        self.stop_ids = ids_to_stop_at(eos)
        self.turn_ids = self.stop_ids | self._end_of_turn()
        if absent := sorted(i for i in self.stop_ids if not 0 <= i < self.spec.vocab_size):
            note(f"eos_token_id {absent} is outside the vocabulary of {self.spec.vocab_size} and will never come")

    @property
    def owed(self) -> int:
        """Bytes of the part that sees or hears, while it is not loaded yet."""
        return self.prompts.owed

    def _end_of_turn(self) -> frozenset[int]:
        """The tokenizer's EOS, where only the tokenizer has it: fine-tunes for chat often leave the configs alone."""
        end = self.tokenizer.eos_id if self.tokenizer else None
        if end is None or end in self.stop_ids or end >= self.spec.vocab_size:
            return frozenset()
        assert self.tokenizer is not None
        name = f"the tokenizer's eos_token {self.tokenizer.special['eos_token']!r} ({end})"
        note(
            f"{name} is no eos_token_id of the configs: it ends an answer to messages, not what follows a plain prompt"
        )
        return frozenset([end])

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        messages: Sequence[chat.Message] | Sequence[Sequence[chat.Message]] | None = None,
        n: int | None = None,
        **options: Any,
    ) -> Result | list[Result]:
        """Complete a text, a list of ids, a conversation, or a list of either as one batch.

        With `n` there are so many completions of each prompt, which is read once, as one list: first all of the first
        prompt. Completion i is drawn with seed + i where a seed is given.

        Options: max_new_tokens; stop, strings before which the text ends, and which may be or hold special tokens;
        stop_token_ids; ignore_eos; the fields of `sampling.Sampling`; of those of `asked.Asked` min_new_tokens,
        logprobs, prompt_logprobs, guide and adapter; those of `decoding.run` (max_batch,
        deterministic, draft, draft_tokens, prompt_lookup). For messages: tools, template_variables (a dict such as
        {"enable_thinking": False}), continue_final_message (go on with the last message; None: where it is the
        assistant's). Messages may have pictures, videos or sounds in them (`media/sources.py`); `images`, `videos` and
        `audio`, lists of paths, bytes, Pillow images or arrays, go with one prompt, in front of it or where it has
        marks for them, and `max_pixels` bounds the size that a picture or frame is seen in. What is not given comes
        from generation_config.json. A batch gives each prompt what it gets alone, but for near ties: products of
        several rows round differently, which shows in bfloat16; with deterministic=True bit for bit. Raises
        ValueError for a prompt or option that cannot be.
        """
        ways = decoding.split(options)
        prompts, single, is_chat = self.prompts.asked(prompt, prompt_ids, messages, options)
        rows, timings = self._rows(prompts, is_chat, n, **options), Timings()
        for _ in self.run(rows, timings, **ways):
            pass
        results = [Result.of(row, timings) for row in rows]
        return results[0] if single and n is None else results

    def stream(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[chat.Message] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The text of one completion piece by piece, never half a character; takes what `generate` takes."""
        ways = decoding.split(options)
        row = self.completion(prompt, prompt_ids=prompt_ids, messages=messages, **options)
        return (piece for _, piece in self.run([row], Timings(), **ways))

    def run(self, rows: Sequence[Completion], timings: Timings, **options: Any) -> Iterator[tuple[int, str]]:
        """Run checked requests; yields (row, new text) as it comes. Options: those of `decoding.run`."""
        return decoding.with_a_word_about_reasoning(rows, decoding.run(self, rows, timings, **options))

    def completion(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        messages: Sequence[chat.Message] | None = None,
        **options: Any,
    ) -> Completion:
        """One checked request, ready for `run`."""
        prompts, single, is_chat = self.prompts.asked(prompt, prompt_ids, messages, options)
        if not single:
            raise ValueError("a list of prompts cannot be streamed; use generate()")
        return self._rows(prompts, is_chat, **options)[0]

    def chat_prompt(
        self,
        messages: Sequence[chat.Message],
        tools: Sequence[Any] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
    ) -> list[int]:
        """The ids of a conversation through the checkpoint's chat template (`ChatTemplate.render`)."""
        return self.prompts.conversation(messages, tools, template_variables, continue_final_message).ids

    def chat_template(self, with_tools: bool = False) -> chat.ChatTemplate:
        """The checkpoint's template, compiled once. Raises ValueError where it has none."""
        return self.prompts.template(with_tools)

    def use_chat_template(self, source: str) -> None:
        """Take this template in place of the checkpoint's. Raises ValueError where it does not compile."""
        self.prompts.use_template(source)

    def _rows(
        self,
        prompts: list[Prompt],
        is_chat: bool,
        n: int | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        ignore_eos: bool = False,
        **options: Any,
    ) -> list[Completion]:
        stated = self.generation_config.get("max_new_tokens")
        wanted = next(n for n in (max_new_tokens, stated, DEFAULT_NEW_TOKENS) if n is not None)
        if isinstance(wanted, bool) or not isinstance(wanted, Integral) or int(wanted) < 1:
            raise ValueError(f"max_new_tokens is {wanted!r}, it must be a whole number of at least 1")
        limit = int(wanted)
        stops = stop_strings(stop, self.tokenizer and self.generation_config.get("stop_strings"))
        if stops:
            self.prompts.need_tokenizer()
        asked = frozenset(
            token_ids(() if stop_token_ids is None else stop_token_ids, "stop_token_ids", below=self.spec.vocab_size)
        )
        eos = self.turn_ids if is_chat else self.stop_ids
        room = self.spec.context - max(len(each.ids) for each in prompts)
        if max_new_tokens is not None and limit > room:
            note(f"{limit} new tokens asked for, the context has room for {room}")
        options["adapter"] = self.model.choice.checked(options.get("adapter") or self.adapter)
        extras = Asked(**{name: options.pop(name) for name in ASKED if options.get(name) is not None})
        chosen = self.sampling(**{name: value for name, value in options.items() if name not in ASKED})
        if unknown := sorted(id for id in chosen.logit_bias or () if not 0 <= id < self.spec.vocab_size):
            raise ValueError(f"logit_bias names token {unknown[0]}, outside the vocabulary of {self.spec.vocab_size}")
        settings = sampling.repeated(chosen, 1 if n is None else n)
        if extras.guide is not None and (texts := len(settings) * len(prompts)) > 1:
            raise ValueError(f"a guide follows one text, and {texts} are asked for; ask for them one by one")
        return [
            Completion(
                ids,
                each,
                max_new_tokens=min(limit, self.spec.context - len(ids)),
                stop_ids=asked if ignore_eos else asked | eos,
                stops=stops,
                tokenizer=self.tokenizer,
                asked=extras,
                inserted=inserted,
            )
            for ids, inserted in prompts
            for each in settings
        ]

    def sampling(self, **options: Any) -> sampling.Sampling:
        """The checkpoint's defaults with the given fields in their place; None means not given."""
        given = {name: value for name, value in options.items() if value is not None}
        fields = set(sampling.Sampling.__dataclass_fields__)
        if unknown := sorted(set(options) - fields):
            raise ValueError(f"unknown option {', '.join(unknown)}; known are {', '.join(sorted([*fields, *OPTIONS]))}")
        stated = {k: v for k, v in sampling.defaults(self.generation_config).items() if k not in given}
        try:
            sampling.Sampling(**stated)
        except ValueError as error:
            raise ValueError(f"generation_config.json: {error}") from None
        chosen = sampling.Sampling(**stated, **given)
        idle = [name for name in ("top_k", "top_p", "min_p", "seed") if name in given]
        if chosen.temperature == 0 and idle:
            note(f"temperature 0 is greedy: {', '.join(idle)} without effect")
        return chosen

    def through(self, adapter: str) -> LLM:
        """The same model for requests that go through one of its adapters."""
        made = copy.copy(self)
        made.adapter = adapter
        return made
