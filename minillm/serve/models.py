"""A loaded checkpoint with its engine, and the names that it is served under."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import minillm
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import shown
from minillm.llm import LLM
from minillm.serve.answers.styles import Style, style_of, styles
from minillm.serve.errors import Refusal
from minillm.serve.tokens import Tokens, specials


class Served:
    """One checkpoint. The first of its `names` is what answers say; `style` is how it writes calls and reasoning, by
    default what its chat template says. Raises ValueError for a style that is not there."""

    def __init__(self, llm: LLM, engine: minillm.Engine, names: Sequence[str], style: str | None = None):
        self.llm, self.engine, self.names = llm, engine, tuple(names)
        self.created = int(time.time())
        self.tokens = Tokens(llm.tokenizer)
        self.specials = specials(llm.folder, llm.tokenizer)
        if style is not None and style not in styles:
            raise ValueError(f"no style {shown(style)}; there are {', '.join(sorted(styles))}")
        self._style = style

    @property
    def name(self) -> str:
        return self.names[0]

    @functools.cached_property
    def template(self) -> str | None:
        """The source of the chat template; None where there is none."""
        try:
            return self.llm.chat_template().source
        except ValueError:
            return None

    @functools.cached_property
    def style(self) -> Style:
        return styles[self._style] if self._style else style_of(self.template)

    @functools.cached_property
    def written(self) -> Style:
        """The style as far as the model is known to write it: it reasons where its template has the marks."""
        known = [each for each in self.style.thinking if each.opens in (self.template or "")]
        return dataclasses.replace(self.style, thinking=tuple(known))

    @functools.cached_property
    def turn_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the model, and where calls are messages what ends such a one."""
        find = self.llm.tokenizer.backend.id_of if self.llm.tokenizer else lambda mark: None
        marks = [find(mark) for mark in self.style.closes] if self.style.channels else []
        return self.llm.turn_ids | {each for each in marks if each is not None}

    @property
    def room(self) -> int:
        """Tokens that a request can have in all: what the model and the cache have room for."""
        return min(self.llm.spec.context, self.engine.engine.store.most() + 1)

    @functools.cached_property
    def architecture(self) -> str:
        """The `model_type` of its config."""
        return str(read_json(self.llm.folder / "config.json").get("model_type", "unknown"))

    @functools.cached_property
    def parameters(self) -> int:
        return sum(each.numel() for each in self.llm.model.parameters())

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the parameters in memory."""
        return sum(each.numel() * each.element_size() for each in self.llm.model.parameters())

    @property
    def dtype(self) -> str:
        return str(self.llm.model.dtype).removeprefix("torch.")

    @property
    def abilities(self) -> list[str]:
        """In Ollama's words, which its clients ask for."""
        template = self.template or ""
        found = {"completion": True, "tools": "tools" in template, "thinking": bool(template) and self.reasons}
        return [name for name, there in found.items() if there]

    @property
    def reasons(self) -> bool:
        """Whether the template can tell the model to reason or not."""
        return "enable_thinking" in (self.template or "") or "reasoning_effort" in (self.template or "")


class Models:
    """All that are served."""

    def __init__(self, served: Sequence[Served]):
        self.all = tuple(served)
        self.named = {name: each for each in served for name in each.names}

    def find(self, name: str | None) -> Served:
        """The model of a name; without one the first. Raises Refusal 404."""
        if name is None:
            return self.all[0]
        found = self.named.get(name) or self.named.get(name.removesuffix(":latest"))
        if found is None:
            known = ", ".join(self.named)
            raise Refusal(404, f"The model {shown(name)} does not exist; there are {known}", "model_not_found", "model")
        return found

    def close(self) -> None:
        for each in self.all:
            each.engine.close()
