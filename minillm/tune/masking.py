"""Records as token ids, and which of them are learnt: what the assistant says, and the token that ends it.

Nearly no published chat template marks that, and none needs to. An answer is what stands behind the prompt: with the
conversation up to it rendered as generation renders it, p, and with the answer, w, p is how w begins, and the rest up
to the first stop token is the answer. Three rules follow:

1. a template with {% generation %} says itself what is learnt;
2. where the sequence of one turn is how that of the next begins, they are one sequence, whose answers are all learnt;
3. where it is not (reasoning that is dropped once another question follows, an end that changes), each turn is a
   sequence of its own, as the model will see it.

A sequence that is too long is left out and counted. An answer is never cut, as it would lose its end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minillm.guard.screen import shown
from minillm.llm import LLM
from minillm.text.rendering import GENERATION
from minillm.tune.data import Messages, Record

MARKS = ("\ufdd0", "\ufdd1")  # which Unicode keeps free for such use: no text has them
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
LEARNT, PLAIN = "\x1b[1;32m", "\x1b[0m"


@dataclass(frozen=True)
class Example:
    """Token ids, which of them are to be foretold from those before, and the line that they come from."""

    ids: list[int]
    learnt: list[bool]
    line: int


Pair = tuple[Example, Example]


class Masking:
    """Makes examples of no more than `most` tokens; `counts` says what was done how often. With `truncate` a
    conversation that is too long loses its oldest turns, behind what the system says."""

    def __init__(self, llm: LLM, most: int, truncate: bool = False):
        if llm.tokenizer is None:
            raise ValueError(f"{llm.folder}: no tokenizer, so texts cannot be learnt; take a checkpoint that has one")
        self.llm, self.most, self.truncate, self.tokenizer = llm, most, truncate, llm.tokenizer
        known = sorted(llm.turn_ids)
        self.end = self.tokenizer.eos_id if self.tokenizer.eos_id in llm.turn_ids else known[0] if known else None
        self.counts: Counter[str] = Counter()

    def examples(self, record: Record) -> list[Example]:
        """What is learnt of a record, a list that may be empty. Raises ValueError that names its line."""
        try:
            made = self._made(record, record.answered)
        except ValueError as error:
            raise ValueError(f"line {record.line}: {error}") from None
        return [each for each in made if self._fits(each)]

    def pair(self, record: Record) -> Pair | None:
        """A record's answer, and the one that it should not be; None where one is too long."""
        assert record.rejected is not None
        try:
            chosen, rejected = (self._made(record, each)[-1] for each in (record.answered, record.rejected))
        except ValueError as error:
            raise ValueError(f"line {record.line}: {error}") from None
        return (chosen, rejected) if self._fits(chosen) and self._fits(rejected) else None

    def _fits(self, example: Example) -> bool:
        fits = len(example.ids) <= self.most and any(example.learnt)
        self.counts["left out, being too long" if not fits else "learnt"] += 1
        return fits

    def _made(self, record: Record, answered: Messages | str) -> list[Example]:
        if isinstance(answered, str):
            assert not isinstance(record.asked, list)
            if record.asked is None:
                return self._pieces(answered, record.line)
            asked = self.tokenizer.encode(record.asked)
            return [self._learnt(asked, self._behind(record.asked, asked, answered, special=True), record.line)]
        before = record.asked or []
        assert isinstance(before, list)
        made = self._conversation([*before, *answered], len(before), record)
        while self.truncate and all(len(each.ids) > self.most for each in made):
            start = next((at for at, each in enumerate(before) if each["role"] != "system"), len(before))
            if (following := [at for at in range(start + 1, len(before)) if before[at]["role"] == "user"]) == []:
                break
            self.counts["turns cut"] += 1
            before = [*before[:start], *before[following[0] :]]
            made = self._conversation([*before, *answered], len(before), record)
        return made

    def _pieces(self, text: str, line: int) -> list[Example]:
        """A text in pieces of `most` tokens, all learnt but the first of each, which nothing stands before."""
        ids = self.tokenizer.encode(text)
        ids += [self.end] if self.end is not None and ids[-1:] != [self.end] else []
        pieces = [ids[start : start + self.most] for start in range(0, len(ids), self.most)]
        return [Example(piece, [False] + [True] * (len(piece) - 1), line) for piece in pieces if len(piece) > 1]

    def _conversation(self, messages: Messages, first: int, record: Record) -> list[Example]:
        """Of what assistants say from message `first` on."""
        tools = record.options.get("tools")
        if first == 0 and MARKED.search(self.llm.chat_template(bool(tools)).source):
            return [self._as_marked(messages, record)]
        turns = [at for at, each in enumerate(messages) if at >= first and each["role"] == "assistant"]
        found: list[Example] = []
        for at in turns:
            example = self._turn(messages, at, record)
            if found and example.ids[: len(found[-1].ids)] == found[-1].ids:
                before = found.pop().learnt
                example = Example(example.ids, before + example.learnt[len(before) :], record.line)
            found.append(example)
        self.counts["several turns in one sequence" if len(found) < len(turns) else "one turn in a sequence"] += 1
        return found

    def _turn(self, messages: Messages, at: int, record: Record) -> Example:
        """Message `at` behind the prompt that generation would make of those before it."""
        asked, whole = self._rendered(messages[:at], True, record), self._rendered(messages[: at + 1], False, record)
        if not whole.startswith(asked):
            raise ValueError(f"the chat template shows message {at} otherwise than behind the prompt for it; give "
                             "prompt and completion as texts instead")  # fmt: skip
        ids, said = self.tokenizer.encode(asked, special=False), messages[at].get("content")
        bare = isinstance(said, str) and whole.rstrip().endswith(said.strip())
        return self._learnt(ids, self._behind(asked, ids, whole[len(asked) :]), record.line, bare)

    def _as_marked(self, messages: Messages, record: Record) -> Example:
        """By a template that says what is learnt; but for the words that generation gives, where it marks them too, and
        for what stands behind a stop token."""
        text = self._rendered(messages, False, record, dict(zip(GENERATION, MARKS, strict=True)))
        without, asked = (self._rendered(messages[:1], prompts, record) for prompts in (False, True))
        given = asked[len(without) :] if asked.startswith(without) else ""
        text = text.replace(MARKS[0] + given, given + MARKS[0])
        before, ids, learnt = "", list[int](), list[bool]()
        for number, part in enumerate(re.split("|".join(MARKS), text)):
            start, ids = len(ids), self._behind(before, ids, part)
            stop = next((at + 1 for at in range(start, len(ids)) if ids[at] in self.llm.turn_ids), len(ids))
            learnt += [number % 2 == 1 and at < stop for at in range(start, len(ids))]
            before += part
        if not self.llm.turn_ids & {i for i, is_learnt in zip(ids, learnt, strict=True) if is_learnt}:
            raise ValueError("no stop token is in what the chat template marks with {% generation %}, so the model "
                             "would never learn to stop; let it mark the end of each answer too")  # fmt: skip
        self.counts["as the template marks it"] += 1
        return Example(ids, learnt, record.line)

    def _rendered(self, messages: Messages, prompts: bool, record: Record, marks: dict[str, str] | None = None) -> str:
        tools = record.options.get("tools")
        variables = {**(record.options.get("variables") or {}), **(marks or {})}
        return self.llm.chat_template(bool(tools)).render(messages, prompts, tools, variables, False)

    def _behind(self, before: str, ids: list[int], more: str, special: bool = False) -> list[int]:
        """The ids of a text behind those of what stands before it. Where tokens would reach over the border they end
        there, as they do when a model goes on with a prompt."""
        joint = self.tokenizer.encode(before + more, special)
        return joint if joint[: len(ids)] == ids else ids + self.tokenizer.encode(more, special=False)

    def _learnt(self, asked: Sequence[int], ids: list[int], line: int, bare: bool = True) -> Example:
        """What follows what is asked, up to its first stop token, or with one where it is `bare`: ends as what was said
        does."""
        stop = next((at for at in range(len(asked), len(ids)) if ids[at] in self.llm.turn_ids), None)
        if stop is None and (self.end is None or not bare):
            end = self.tokenizer.decode(ids[-8:], skip_special=False)
            raise ValueError(f"no stop token of the checkpoint is in the answer, which ends {shown(end)}, so that the "
                             "model would never learn to stop; have generation_config.json say as eos_token_id which "
                             "token ends an answer")  # fmt: skip
        if stop is None:
            assert self.end is not None
            self.counts["a stop token put behind"] += 1
            ids = [*ids, self.end]
        else:
            ids = ids[: stop + 1]
        return Example(ids, [False] * len(asked) + [True] * (len(ids) - len(asked)), line)

    def shown(self, example: Example, colours: bool) -> str:
        """An example as text, what is learnt of it in green, or between ⟦ and ⟧."""
        begins, ends = (LEARNT, PLAIN) if colours else ("⟦", "⟧")
        found, at = "", 0
        while at < len(example.ids):
            stop = next((i for i in range(at, len(example.ids)) if example.learnt[i] != example.learnt[at]), None)
            before, so_far = (self.tokenizer.decode(example.ids[:end], skip_special=False) for end in (at, stop))
            # Of some tokenizers the space that a piece of text begins with is there behind others only.
            whole = so_far.startswith(before)
            text = so_far[len(before) :] if whole else self.tokenizer.decode(example.ids[at:stop], skip_special=False)
            found += f"{begins}{text}{ends}" if example.learnt[at] else text
            at = len(example.ids) if stop is None else stop
        return found
