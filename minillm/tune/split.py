"""Training a model of which several processes share every layer, as when they generate (`parallel/split.py`). Each
processes all rows of a step with its part of every layer; `parallel/gradients.py` has what they exchange.

Each process trains what it holds: rows and columns of each parameter, or of an adapter's A and B. Gradients are summed
for:

    of the model    what lies whole in each rank between `entered` and `total`: routers, norms of q and k, latents; and
                    kv heads that several ranks have, over these
    of an adapter   all there, and of embedding and head; where each rank has values of its own, nothing is added

To be summed, each rank's values are placed into the whole tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from minillm.adapters.adapter import Adapter
from minillm.adapters.attach import attach
from minillm.adapters.build import Base
from minillm.adapters.config import AdapterConfig
from minillm.llm import LLM
from minillm.model.decoder import Decoder
from minillm.parallel.kept import kept
from minillm.parallel.ranks import Ranks
from minillm.parallel.share import Cut, own
from minillm.tune.team import Ranked

# What is between `entered` and `total`: not the norms of sums that mixtures have of their own.
PARTED = re.compile(r"layers\.\d+\.(attention|ffn)\.(?!(shared_)?post_norm\.)")


@dataclass(frozen=True)
class Own:
    """For a trained parameter: the shape of the whole, how it is cut, and whether its gradient here is partial."""

    shape: tuple[int, ...]
    cut: Cut
    parted: bool

    def places(self) -> Tensor:
        """The places in the whole of the values held here, int64 `[their number]`."""
        return self.cut(torch.arange(math.prod(self.shape)).view(self.shape)).flatten()

    def laid(self, values: Tensor, beside: float = 0.0) -> Tensor:
        """The whole, fp32 and flat, with the values held here at their places and `beside` everywhere else."""
        made = torch.full((math.prod(self.shape),), beside, device=values.device)
        made[self.places().to(values.device)] = values.detach().float().flatten()
        return made


class Split(Ranked):
    """Processes that share every layer."""

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        self.splits = ranks
        self.adapter: Adapter | None = None  # as it is written
        self.owns: dict[str, Own] = {}
        self.times: dict[str, Tensor | float] = {}  # in how many ranks values of a parameter are

    def total(self, *values: float) -> list[float]:
        """All computed the same rows, so the mean; it is the same number in each."""
        return [each / self.count for each in super().total(*values)]

    def attach(self, llm: LLM, config: AdapterConfig, seed: int) -> Adapter:
        assert self.part is not None
        whole = Base(self.part.whole(llm.model.dtype), llm.values, llm.device)
        self.adapter = attach(whole, config, seed)
        return self.adapter.onto(llm.model, self.part)

    def share(self, model: Decoder, named: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        assert self.part is not None
        if self.adapter is not None:
            cuts, alike = self.part.cuts, self._outside()
            found = {name: (each, cuts[id(each)][1]) for name, each in self.adapter.trained.items()}
            self.owns = {
                name: Own(tuple(each.shape), cut, id(each) not in alike) for name, (each, cut) in found.items()
            }
        else:
            self.owns = self._of_model()
            for name, each in model.named_parameters():
                if (part := self.part.kept.get(name)) is not None and part.absent:
                    each.requires_grad_(False)
        named = {name: each for name, each in named.items() if each.requires_grad}
        ones = {name: torch.ones_like(each, dtype=torch.float32) for name, each in named.items()}
        shared = self._summed({name: each for name, each in ones.items() if self.owns[name].parted})
        self.times = {name: shared.get(name, self._alike(name)) for name in named}
        return named

    def _outside(self) -> set[int]:
        """The tensors of the adapter, by id, that change what lies whole in each rank and goes into no sum."""
        assert self.adapter is not None
        deltas, inside = self.adapter.deltas.items(), re.compile(rf"{PARTED.pattern}|(embedding|head)\.")
        found = [delta for (owner, _), delta in deltas if not inside.match(f"{owner}.")]
        return {id(each) for delta in found for each in delta.tensors()}

    def _alike(self, name: str) -> float:
        """In how many ranks a parameter lies whose gradient is complete in each."""
        assert self.part is not None
        return self.count if self.part.kept.get(name) is None else 1

    def _of_model(self) -> dict[str, Own]:
        assert self.part is not None
        spec, found = self.part.spec, {}
        of_each = [kept(spec, self.count, rank) for rank in range(self.count)]
        for name, each in self.part.whole(torch.float32).named_parameters():
            part, rows = self.part.kept.get(name), each.shape[:-1].numel() if each.dim() > 1 else len(each)
            held = [end - first for other in of_each for first, end in getattr(other.get(name), "rows", None) or ()]
            parted = bool(PARTED.match(name)) and (part is None or sum(held) > rows)
            found[name] = Own(tuple(each.shape), partial(own, kept=part), parted)
        return found

    def gathered(self, named: Mapping[str, nn.Parameter]) -> None:
        for each in named.values():
            if each.grad is None:  # no token has come to the experts that are here
                each.grad = torch.zeros_like(each)
        parted = {name: each.grad for name, each in named.items() if self.owns[name].parted}
        for name, grad in self._summed({name: each for name, each in parted.items() if each is not None}).items():
            named[name].grad = grad.to(named[name].dtype)

    def _summed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over ranks of these gradients, at the values held here, fp32."""
        if not values:
            return {}
        laid = [self.owns[name].laid(each) for name, each in values.items()]
        parts = self.splits.summed(torch.cat(laid)).split([len(each) for each in laid])  # type: ignore[attr-defined]
        return {
            name: part[self.owns[name].places().to(part.device)].view(each.shape)
            for (name, each), part in zip(values.items(), parts, strict=True)
        }

    def norm(self, named: Mapping[str, nn.Parameter]) -> float:
        squares = [
            (each.grad.float() ** 2 / self.times[name]).sum() for name, each in named.items() if each.grad is not None
        ]
        return math.sqrt(self.count * self.total(float(torch.stack(squares).sum()))[0])

    def whole(self, model: Decoder) -> Decoder:
        assert self.part is not None
        if self.adapter is not None:
            for name, each in self.adapter.trained.items():
                each.data.copy_(self._together(name, self.part.parameter(each)).view(each.shape))
            return model
        made = self.part.whole(model.dtype)
        found = {}
        for name, each in model.named_parameters():
            full = self._together(name, each).view(self.owns[name].shape).to(each.dtype)
            if self.leads:
                found[name] = full.cpu()
        if self.leads:
            made.load_state_dict(found, assign=True)
        return made

    def _together(self, name: str, values: Tensor) -> Tensor:
        """The whole parameter, put together from all ranks, flat and fp32: the same bits."""
        assert self.part is not None
        part = self.part.kept.get(name)
        laid = self.owns[name].laid(values, -math.inf)
        return self.splits.most(laid.fill_(-math.inf) if part is not None and part.absent else laid)  # type: ignore[attr-defined]
