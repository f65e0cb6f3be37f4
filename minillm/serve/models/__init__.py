"""A checkpoint as lists show it, which takes no more than its small files; and a loaded one, with its engine."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import minillm
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import shown
from minillm.llm import LLM
from minillm.media import tower
from minillm.model.decoder import Decoder
from minillm.model.held import plain_shapes
from minillm.serve.answers.described import DESCRIBED, style_as_described
from minillm.serve.answers.styles import Style, style_of, styles
from minillm.serve.tokens import Tokens, added


@dataclass(frozen=True)
class Card:
    """What lists say of a checkpoint. The first of its `names` is what answers say; `room` is how many tokens a request
    can have in all, `architecture` the `model_type` of its config, `size` the bytes of its weights in memory,
    `template` the source of its chat template, `kind` what it takes beside text, "image" or "audio", and `parent` the
    name of the model that it is an adapter of."""

    names: tuple[str, ...]
    room: int
    architecture: str
    parameters: int
    size: int
    dtype: str
    template: str | None
    kind: str | None = None
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def abilities(self) -> list[str]:
        """In Ollama's words, which its clients ask for."""
        source = self.template or ""
        thinks = "enable_thinking" in source or "reasoning_effort" in source  # it can be told to, or not
        found = {"completion": True, "vision": self.kind == "image", "audio": self.kind == "audio"}
        found |= {"tools": "tools" in source, "thinking": thinks}
        return [name for name, there in found.items() if there]


def card(names: Sequence[str], values: Mapping[str, Any], model: Decoder, template: str | None, positions: int) -> Card:
    """That of a model, with memory or without, whose cache has room for so many positions."""
    seen = tower.outlined(values, model.dtype)
    return Card(
        tuple(names),
        room=min(model.spec.context, positions + 1),
        architecture=str(values.get("model_type", "unknown")),
        parameters=sum(math.prod(shape) for shape in plain_shapes(model).values()),
        size=sum(each.nbytes for part in (model, *(seen or ())[1:]) for each in part.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        template=template,
        kind=seen[0].kind if seen else None,
    )


class Served:
    """A loaded checkpoint. `style` is how it writes calls and reasoning, by default what its chat template says;
    `parent` is the name of the one that this is an adapter of, whose engine it shares. Raises ValueError for a style
    that is not there."""

    def __init__(
        self,
        llm: LLM,
        engine: minillm.Engine,
        names: Sequence[str],
        style: str | None = None,
        parent: str | None = None,
    ):
        self.llm, self.engine, self.names, self.parent = llm, engine, tuple(names), parent
        self.tokens = Tokens(llm.tokenizer)
        self.added = added(llm.folder, llm.tokenizer)
        self.specials = frozenset(name for name, special in self.added.items() if special)
        if style is not None and style not in styles:
            raise ValueError(f"no style {shown(style)}; there are {', '.join(sorted(styles))}")
        self._style = style
        self.style = styles[style] if style else self._described()

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

    def _described(self) -> Style:
        """What the chat template says, or the checkpoint's own description of its answers."""
        own = self.llm.tokenizer.config.get("response_template") if self.llm.tokenizer else None
        return style_as_described(own, style_of(self.template))

    @functools.cached_property
    def written(self) -> Style:
        """The style as far as the model is known to write it: it reasons where its template has the marks."""
        described = self.style.name == DESCRIBED  # by the checkpoint itself
        known = [each for each in self.style.thinking if described or each.opens in (self.template or "")]
        return dataclasses.replace(self.style, thinking=tuple(known))

    @functools.cached_property
    def marks(self) -> dict[str, int]:
        """Marks that are tokens of their own: special tokens, and what the style has that were added."""
        find = self.llm.tokenizer.backend.id_of if self.llm.tokenizer else lambda mark: None
        texts = self.style.texts
        names = [name for name in self.added if name in self.specials or any(name in each for each in texts)]
        return {name: token for name in names if (token := find(name)) is not None}

    @functools.cached_property
    def turn_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the model, and where calls are messages what ends such a one."""
        find = self.llm.tokenizer.backend.id_of if self.llm.tokenizer else lambda mark: None
        marks = [find(mark) for mark in self.style.closes] if self.style.channels else []
        return self.llm.turn_ids | {each for each in marks if each is not None}

    @functools.cached_property
    def card(self) -> Card:
        values, positions = read_json(self.llm.folder / "config.json"), self.engine.engine.store.most()
        made = card(self.names, values, self.llm.model, self.template, positions)
        return dataclasses.replace(made, parent=self.parent)

    def adapters(self) -> list[Served]:
        """What requests can ask for instead: the same model through one of its adapters."""
        known = self.llm.model.choice.known
        return [Served(self.llm.through(each), self.engine, (each,), self._style, self.name) for each in known]

    @property
    def room(self) -> int:
        return self.card.room
