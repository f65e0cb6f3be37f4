"""The share of a rank in whole tensors: in parameters, and in adapters, whose A is cut like the columns of their matrix
and B like its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.decoder import Decoder, skeleton
from minillm.model.lora.deltas import Deltas, EmbeddingDelta, Part
from minillm.parallel.kept import Kept
from minillm.spec import Decoder as Spec

Cut = Callable[[Tensor], Tensor]  # a whole tensor -> what is here of it
HEAD, TABLE = "head.weight", "embedding.weight"


def own(whole: Tensor, kept: Kept | None) -> Tensor:
    """The rows and columns of a parameter that are kept."""
    if kept is None or kept.absent:
        return whole if kept is None else torch.zeros_like(whole)
    rows = whole.flatten(0, -2) if whole.dim() > 1 else whole
    numbers = torch.arange(len(rows))
    if kept.rows is not None:
        numbers = torch.cat([numbers[slice(*span)] for span in kept.rows])
        rows = rows[numbers.to(rows.device)]
    rows = rows if kept.columns is None else rows[:, slice(*kept.columns)]
    matrices = (len((numbers // whole.shape[-2]).unique()),) if whole.dim() > 2 else ()
    return rows.reshape(*matrices, -1, *rows.shape[1:])


@dataclass(frozen=True)
class Share:
    """A rank's share of a model of this spec. `name` is what the rank calls a parameter, None if it holds none of it;
    `kept`, by these names, which rows and columns it holds; `cuts` how tensors of attached adapters were cut, by the
    id of the whole tensor."""

    spec: Spec
    name: Callable[[str], str | None]
    kept: Mapping[str, Kept]
    cuts: dict[int, tuple[nn.Parameter, Cut]] = field(default_factory=dict)

    def whole(self, dtype: torch.dtype) -> Decoder:
        """The model that all have together, without memory."""
        return skeleton(self.spec, dtype)

    def of(self, path: str) -> Kept | None:
        """What is kept of a parameter that is here under this name."""
        return self.kept.get(TABLE if path == HEAD and HEAD not in self.kept else path)

    def value(self, path: str, whole: nn.Parameter) -> nn.Parameter:
        """What is here of other values of a parameter."""
        return self._cut(whole, lambda values: own(values, self.of(path)))

    def parameter(self, whole: nn.Parameter) -> nn.Parameter:
        """What is here of a tensor of an adapter."""
        return self.cuts[id(whole)][0] if id(whole) in self.cuts else whole

    def added(self, path: str, delta: Any, shape: tuple[int, ...]) -> tuple[str, Any] | None:
        """What an adapter adds to a parameter of this shape, as it is here: under which name, and what. Raises
        ValueError where that depends on what others have."""
        if (name := self.name(path)) is None:
            return None
        kept = self.of(name) or Kept()
        if isinstance(delta, EmbeddingDelta):
            a, b = self._cut(delta.a, lambda a: own(a.T, kept).T), self._cut(delta.b, Tensor.clone)
            return name, replace(delta, a=a, b=b)
        whole = torch.arange(torch.Size(shape[:-1]).numel()).view(*shape[:-1], 1)
        held = own(whole, replace(kept, columns=None))[..., 0]
        added = (bias := self.of(f"{name.rpartition('.')[0]}.bias")) is None or not bias.absent
        made = Deltas([self._part(part, kept, held, shape[-2], added) for part in delta.parts])
        made.biases = [*self._biases(delta, held)] if added else []
        return name, made

    def _part(self, part: Part, kept: Kept, held: Tensor, outputs: int, added: bool) -> Part:
        """`held`: the numbers of the rows that are here, `[O]` or `[E, O]`, of `outputs` in each matrix."""
        if part.magnitude is not None and kept.columns is not None:
            raise ValueError("the adapter has use_dora, which divides by the size of whole rows, and each rank has a "
                             "part of them; merge it first")  # fmt: skip
        inner = held.reshape(-1, held.shape[-1])[0] % outputs
        rows = torch.isin(torch.arange(part.start, part.rows.stop), inner)
        experts = held[:, 0] // outputs if held.dim() > 1 else ...
        columns = slice(*kept.columns) if kept.columns else slice(None)
        some = _some(rows)
        return replace(
            part,
            start=int((inner < part.start).sum()),
            a=self._cut(part.a, lambda a: a[experts][..., columns]),
            b=self._cut(part.b, lambda b: b[experts][..., rows, :]),
            bias=None if part.bias is None or not added else self._cut(part.bias, some),
            magnitude=None if part.magnitude is None else self._cut(part.magnitude, some),
        )

    def _biases(self, delta: Deltas, held: Tensor) -> Iterator[tuple[int, Tensor]]:
        for start, values in delta.biases:
            rows = torch.isin(torch.arange(start, start + len(values)), held)
            yield int((held < start).sum()), self._cut(values, _some(rows))

    def _cut(self, whole: Any, cut: Cut) -> nn.Parameter:
        made = nn.Parameter(cut(whole.detach()).contiguous(), requires_grad=whole.requires_grad)
        self.cuts[id(whole)] = made, cut
        return made


def _some(rows: Tensor) -> Cut:
    return lambda values: values[rows]
