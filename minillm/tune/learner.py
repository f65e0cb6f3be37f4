"""What learns: an adapter beside a model that stays as it is, or the model itself; and how either is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minillm import config, families, hub
from minillm.families.media import is_part
from minillm.guard.files import is_there, read_bytes
from minillm.guard.writing import complete
from minillm.llm import LLM
from minillm.model.decoder import Decoder, skeleton
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.load import WHOLE
from minillm.weights.save import save

ROUTER = ".ffn.router."  # not that of several residual streams
NEVER = ("router.bias", "router.table")  # what no gradient reaches: corrections of scores, and numbers of experts


@dataclass(frozen=True)
class Learner:
    """The parameters that learn, by name; of matrices the rows that lie one under the other in them, for Muon."""

    llm: LLM
    named: Mapping[str, nn.Parameter]
    parts: Mapping[str, Sequence[int]]
    adapter: Any = None

    @property
    def values(self) -> int:
        if self.adapter is not None:  # of either only a share may be here
            filed = {id(each): each.numel() for made in self.adapter.filed.values() for each in made.parameters}
            return sum(filed.values())
        sizes = self._sizes()
        return sum(sizes[name] for name in self.named)

    def _sizes(self) -> dict[str, int]:
        whole = skeleton(families.resolve(self.llm.values)[0], torch.float32)
        return {name: each.numel() for name, each in whole.named_parameters()}

    @property
    def routes(self) -> bool:
        """Whether routers learn, or what an adapter adds to them: its names are PEFT's, those of modules ours."""
        names = self.named if self.adapter is None else map(".".join, self.adapter.deltas)
        return any(ROUTER in name for name in names)

    def described(self) -> str:
        total = sum(self._sizes().values()) if self.adapter is None else None
        kind = "all of the model" if total == self.values else "the model, but corrections and tables of routers"
        return f"{kind}, {self.values:,} values" if self.adapter is None else f"an adapter of {self.values:,} values"

    def write(self, folder: Path, base: str, model: Decoder) -> None:
        """The adapter as PEFT has it, or the checkpoint with the parameters of `model`, into a folder; each file is
        complete or as it was."""
        if self.adapter is not None:
            self.adapter.write(folder, base)
        else:
            write_checkpoint(self.llm.folder, model, folder)


def whole(llm: LLM) -> Learner:
    """All parameters of a model. Raises ValueError where some are quantised."""
    model = llm.model
    odd = next((name for name, each in model.named_parameters() if not each.is_floating_point()), None)
    if odd is not None or any("held" in module.__dict__ for module in model.modules()):
        raise ValueError("--full: matrices of this checkpoint are quantised, and integers do not learn; give the "
                         "checkpoint that it was made from, or leave --full out for an adapter beside it")  # fmt: skip
    named = {name: each for name, each in model.named_parameters() if not name.endswith(NEVER)}
    for each in named.values():
        each.requires_grad_(True)
    rows: dict[str, dict[int, int]] = {}
    for to in model.destinations().values():
        if len(to.shape) == 2 and min(to.shape) > 1:
            rows.setdefault(to.parameter, {})[to.start] = to.shape[0]
    parts = {name: [found[start] for start in sorted(found)] for name, found in rows.items()}
    parts = {name: found for name, found in parts.items() if not name.startswith(("embedding.", "head."))}
    return Learner(llm, named, parts)


def write_checkpoint(base: Path, model: Decoder, folder: Path) -> None:
    """A model as a checkpoint in the layout of that in the folder `base`, in the type that was stored; config.json
    last."""
    values = config.read(base)
    spec, rules, read = families.resolve(values)
    dtype = getattr(torch, read.dtype) if read.dtype in ("bfloat16", "float16", "float32") else torch.float32
    fp32 = {f"{path}.{name}" for path, module in model.named_modules() for name in getattr(module, "FP32", ())}
    parameters = {
        name: each.detach().to(torch.int64 if name.endswith(WHOLE) else torch.float32 if name in fp32 else dtype)
        for name, each in model.named_parameters()
    }
    if spec.tied is not model.spec.tied:
        values = families.untied(values)
    folder.mkdir(parents=True, exist_ok=True)
    given = Checkpoint(base, values.get("quantization_config"))
    towers = {name: each for name, each in given.stored.items() if is_part(name)}
    save(folder / "model.safetensors", parameters, rules, model.destinations(), towers, given.within)
    small = {name: read_bytes(base / name) for name in hub.SMALL_FILES if is_there(base / name)}
    small["config.json"] = json.dumps(values, indent=2, ensure_ascii=False).encode()
    for name, content in small.items():
        with complete(folder / name) as file:
            file.write(content)


def adapter_values(model: nn.Module, rank: int) -> int:
    """About how many values an adapter of all linear matrices has: r (O + I) each, of their parts one by one."""
    total = 0
    for to in model.destinations().values():  # type: ignore[operator]
        if len(to.shape) == 2 and min(to.shape) > 1 and not to.parameter.startswith(("embedding.", "head.")):
            total += rank * sum(to.shape) if ".experts." not in to.parameter and ROUTER not in to.parameter else 0
    return total
