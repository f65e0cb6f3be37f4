"""Where guesses come from (`guessing.py`): a smaller model with the same vocabulary, or the text itself, what followed
the last time that these few tokens stood there (prompt lookup, Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.engine.batching.guessing import Wanted
from minillm.engine.batching.passes import Mixed, Single, alone
from minillm.engine.batching.request import Request
from minillm.engine.batching.room import counts
from minillm.engine.batching.runner import Runner
from minillm.engine.batching.scheduler import Work
from minillm.engine.batching.store import Store
from minillm.engine.choosing import Chooser
from minillm.engine.completion import Timings
from minillm.model.costs import bytes_per_step
from minillm.model.decoder import Decoder


class Lookup:
    """Guesses by what followed when the last `longest` tokens, or as many as are found, stood in the text before."""

    cost = 0.0

    def __init__(self, longest: int):
        self.longest = longest
        self.texts: WeakKeyDictionary[Request, NGrams] = WeakKeyDictionary()

    def propose(self, wanted: Wanted) -> list[list[int]]:
        """See `guessing.Proposer`."""
        found = []
        for request, count in wanted:
            grams = self.texts.setdefault(request, NGrams(self.longest))
            found.append(grams.following(request.row.sequence, count))
        return found


class NGrams:
    """Where in a growing text each run of up to `longest` tokens stood last."""

    def __init__(self, longest: int):
        self.longest = longest
        self.indexed = 0
        self.behind: dict[tuple[int, ...], int] = {}  # where the last of each n-gram ended

    def following(self, text: Sequence[int], count: int) -> list[int]:
        """So many tokens that may follow a text, or none; the text is the last one with more behind it."""
        text = [*text]
        for end in range(self.indexed + 1, len(text)):  # what ends the text has nothing behind it yet
            for n in range(1, min(self.longest, end) + 1):
                self.behind[tuple(text[end - n : end])] = end
        self.indexed = len(text) - 1
        sizes = range(min(self.longest, len(text)), 0, -1)
        at = next((self.behind[key] for n in sizes if (key := tuple(text[-n:])) in self.behind), None)
        if at is None:
            return []
        for each in range(at, at + count):  # beyond the end of the text the guesses themselves go on
            text.append(text[each])
        return text[len(text) - count :]


@dataclass(eq=False)
class Shadow(Request):
    """A request as a draft has it."""

    drawn: int = 0  # tokens of its text when there were last guesses


class Draft:
    """Guesses by a model with the vocabulary of `target`, drawn as the requests themselves are, for all at once. It has
    `positions` of them in blocks of its own, in `shadows` of the requests."""

    def __init__(self, model: Decoder, target: Decoder, positions: int, rows: int, budget: int, timings: Timings):
        self.model, self.target, self.budget, self.timings = model, target, budget, timings
        self.cost = bytes_per_step(model) / bytes_per_step(target)
        self.runner = Runner(model, counts(model, positions, rows, budget))
        self.store = Store(model, self.runner, budget, share=False)
        self.shadows: dict[Request, Shadow] = {}

    def propose(self, wanted: Wanted) -> list[list[int]]:
        """See `guessing.Proposer`."""
        for request in [each for each in self.shadows if each.finished]:
            self.store.release(self.shadows.pop(request))
        most = {self.shadows.setdefault(request, Shadow(request.row)): count for request, count in wanted}
        able = [shadow for shadow, count in most.items() if self._caught_up(shadow, count)]
        if able:
            self._draft(able, most)
        found = [self.shadows[request].guesses for request, _ in wanted]
        return [[*each] for each in found]

    def _caught_up(self, shadow: Shadow, count: int) -> bool:
        """Whether it can be gone on with: what was right of the last guesses counts as computed, and there is room."""
        row = shadow.row
        if shadow.guesses:
            made = row.token_ids[shadow.drawn :]
            right = [one == other for one, other in zip(shadow.guesses, made, strict=False)]
            if "state" not in self.store.groups:
                self.store.advance(shadow, min([*right, False].index(False), len(shadow.guesses) - 1))
            shadow.guesses = []
        if shadow.computed and shadow.salted != self.store.salt(shadow):
            self.store.release(shadow)
        shadow.salted, shadow.drawn = self.store.salt(shadow), len(row.token_ids)
        size = self.model.spec.vocab_size
        known = max(shadow.ids(shadow.computed, shadow.length)) < size
        fits = shadow.length + count <= self.model.spec.context and count <= self.store.alike(shadow)
        return known and fits and self.store.grow(shadow, shadow.length + count)

    def _draft(self, shadows: list[Shadow], most: dict[Shadow, int]) -> None:
        logits_NV = self._read(shadows)
        able = [shadow for shadow in shadows if self.store.save(shadow)]
        logits_NV = logits_NV[[shadows.index(each) for each in able]]
        going = able
        while going:
            chooser = Chooser(self.target, [each.row for each in going], [each.guesses for each in going])
            for shadow, token in zip(going, chooser(logits_NV).tolist(), strict=True):
                if 0 <= token < self.model.spec.vocab_size:
                    shadow.guesses.append(token)
                else:
                    most[shadow] = 0
            going = [each for each in going if len(each.guesses) < most[each]]
            if going:
                work: Work = [(each, 1) for each in going]
                logits_NV = self._pass(work, ahead=True)
        for shadow in able:
            shadow.computed = shadow.length
            self.store.restore(shadow)

    def _read(self, shadows: list[Shadow]) -> Tensor:
        """Read what they have not read, in passes of at most `budget` tokens -> logits `[n, V]` behind each."""
        found: dict[Request, Tensor] = {}
        while unread := [each for each in shadows if each not in found]:
            left, work = self.budget, Work()
            for shadow in unread:
                if left:
                    work.append((shadow, min(shadow.unread, left)))
                    left -= work[-1][1]
            work.sort(key=lambda pair: pair[1] > 1)
            done = [request for request, count in work if count == request.unread]
            for (request, _), logits_V in zip(work, self._pass(work), strict=True):
                if request in done:
                    found[request] = logits_V.clone()
        return torch.stack([found[each] for each in shadows])

    def _pass(self, work: Work, ahead: bool = False) -> Tensor:
        """Logits `[n, V]` behind the last token of each, with the target's V: a vocabulary may be padded."""
        device = self.model.embedding.weight.device
        self.timings.draft_steps += 1
        if all(alone(pair, self.store) for pair in work):
            logits_NV = self.runner.single(Single.of(work, self.store, device))
        else:
            ends = torch.tensor([count for _, count in work]).cumsum(0) - 1
            logits_NV = self.runner.logits(self.runner.mixed(Mixed.of(work, self.store, device))[:, ends])[0]
        for shadow, count in work:
            if ahead:
                shadow.computed += count
            else:
                self.store.advance(shadow, count)
        missing = self.target.spec.vocab_size - self.model.spec.vocab_size
        return F.pad(logits_NV, (0, missing), value=float("-inf"))
