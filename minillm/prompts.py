"""From what users ask to prompts: texts, conversations, ids, and pictures and sounds beside them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm.engine.completion import Prompt
from minillm.engine.requests import one_or_many, token_ids
from minillm.families.media import media
from minillm.media import sources, tower
from minillm.media.prompts import Reader
from minillm.model.decoder import Decoder
from minillm.text import chat
from minillm.text.tokenizer import Tokenizer

OF_TEMPLATES = ("tools", "template_variables", "continue_final_message")


class Prompts:
    """A checkpoint's tokenizer, chat template, and tower, which is loaded when there is something to see or hear."""

    def __init__(
        self, folder: Path, values: Mapping[str, Any], model: Decoder, tokenizer: Tokenizer | None, device: torch.device
    ):
        self.folder, self.values, self.model, self.tokenizer, self.device = folder, values, model, tokenizer, device
        self.spec = model.spec
        self._templates: dict[bool, chat.ChatTemplate] = {}  # by whether there are tools
        self._reader: Reader | None = None
        self._loading = threading.Lock()  # of the tower, for which several requests may ask at once

    def need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"{self.folder}: no tokenizer.json or tokenizer.model; only prompt ids without stop strings work"
            )
        return self.tokenizer

    def template(self, with_tools: bool = False) -> chat.ChatTemplate:
        """The checkpoint's template, compiled once. Raises ValueError where it has none."""
        if with_tools not in self._templates:
            tokenizer = self.need_tokenizer()
            source = chat.find(self.folder, tokenizer.config, with_tools)
            if source is None:
                raise ValueError(f"{self.folder}: no chat template; give a plain prompt instead of messages")
            self._templates[with_tools] = chat.ChatTemplate(source, tokenizer.special)
        return self._templates[with_tools]

    def use_template(self, source: str) -> None:
        """Take this template in place of the checkpoint's. Raises ValueError where it does not compile."""
        template = chat.ChatTemplate(source, self.need_tokenizer().special)
        self._templates = dict.fromkeys((False, True), template)

    @property
    def kind(self) -> str | None:
        """Whether it takes images or audio beside text; None where neither."""
        found = None if self._reader else media(self.values)
        return self._reader.media.kind if self._reader else found and found[0].kind

    @property
    def owed(self) -> int:
        """Bytes that the tower will take, which is not loaded yet."""
        return tower.nbytes(self.values, self.model.dtype) if self._reader is None else 0

    @property
    def reader(self) -> Reader:
        """What sees and hears for this model. Raises ValueError for one that does neither."""
        with self._loading:
            if self._reader is None:
                if self.model.ops.ranks.count > 1:
                    raise ValueError("pictures and sounds do not go with --ranks or --stages; leave one of them out")
                given = self.need_tokenizer(), self.spec.context, self.model.dtype, self.device, self.model.ops
                self._reader = tower.load(self.folder, self.values, *given)
            return self._reader

    def asked(
        self, prompt: Any, prompt_ids: Any, messages: Any, options: dict[str, Any]
    ) -> tuple[list[Prompt], bool, bool]:
        """Prompts, whether the caller gave just one, and whether they are conversations; takes what templates need out
        of `options`, and pictures and sounds."""
        of_templates = {name: options.pop(name, None) for name in OF_TEMPLATES}
        beside = sources.beside(*(options.pop(name, None) for name in ("images", "audio", "videos")))
        max_pixels = sources.most_pixels(options.pop("max_pixels", None))
        given = [
            name
            for name, value in (("prompt", prompt), ("prompt_ids", prompt_ids), ("messages", messages))
            if value is not None
        ]
        if len(given) != 1:
            raise ValueError("give exactly one of prompt, prompt_ids and messages")
        if messages is None and (idle := [name for name, value in of_templates.items() if value]):
            raise ValueError(f"{' and '.join(idle)} go with messages; they mean nothing to a {given[0]}")
        if beside and not isinstance(prompt, str):
            raise ValueError("images, videos and audio go with one prompt; put those of messages into their content")
        if beside and not self.reader.marked(prompt):
            prompt, messages = None, [{"role": "user", "content": [*beside, {"type": "text", "text": prompt}]}]
        if prompt is not None:
            texts, single = one_or_many(prompt, str, "prompt")
            _, found = sources.taken([{"content": beside}])
            prompts = [self.of_text(text, found, max_pixels=max_pixels) for text in texts]
        elif messages is not None:
            if not isinstance(messages, Sequence) or isinstance(messages, str):
                raise ValueError(
                    f"messages is a {type(messages).__name__}, expected a list of messages, or of such lists"
                )
            single = not messages or not isinstance(messages[0], (list, tuple))
            every = [messages] if single else messages
            prompts = [self.conversation(each, **of_templates, max_pixels=max_pixels) for each in every]
        else:
            rows = prompt_ids.tolist() if hasattr(prompt_ids, "tolist") else prompt_ids
            single = not (isinstance(rows, (list, tuple)) and rows and hasattr(rows[0], "__len__"))
            prompts = [Prompt(token_ids(ids)) for ids in ([rows] if single else rows)]
        if max_pixels is not None and not any(made.inserted for made in prompts):
            raise ValueError("max_pixels goes with pictures; give some, or leave it out")
        for made in prompts:
            self._check(made.ids)
        return prompts, single, messages is not None

    def conversation(
        self,
        messages: Sequence[chat.Message],
        tools: Sequence[Any] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
        max_pixels: int | None = None,
    ) -> Prompt:
        """A conversation through the checkpoint's chat template (`ChatTemplate.render`)."""
        seen, found = sources.taken(messages)
        if found:
            self.reader.take(found)
        template = self.template(with_tools=bool(tools))
        text = template.render(
            seen, tools=tools, variables=template_variables, continue_final_message=continue_final_message
        )
        return self.of_text(text, found, special=False, max_pixels=max_pixels)

    def of_text(
        self, text: str, found: Sequence[sources.Source] = (), special: bool = True, max_pixels: int | None = None
    ) -> Prompt:
        """A text that has a mark for each picture or sound. Raises ValueError where it is too long."""
        if found:
            return self.reader.prompt(text, found, special, max_pixels)
        self.need_tokenizer().refuse_too_long(text, self.spec.context)
        return Prompt(self.need_tokenizer().encode(text, special))

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise ValueError("the prompt is empty; give a token id, or a text that the tokenizer makes one of")
        if not 0 <= min(ids) <= max(ids) < self.spec.vocab_size:
            worst = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(f"token id {worst} is outside the vocabulary of {self.spec.vocab_size}")
        if len(ids) >= self.spec.context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the context {self.spec.context}; leave room for new text"
            )
