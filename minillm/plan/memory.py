"""What a checkpoint's quantised weights take in memory as a load holds them: matrices in the parts of their forms, what
cannot stay so as plain numbers."""

from __future__ import annotations

import torch

from minillm import ops
from minillm.model import held
from minillm.model.decoder import skeleton
from minillm.report.examine import Examined
from minillm.weights import holding
from minillm.weights.load import faults


def held_bytes(found: Examined, dtype: torch.dtype, device: torch.device) -> dict[str, int] | None:
    """Bytes of each parameter of the model, held for computing in `dtype` on `device`; None where the files are not
    there, or nothing in them is quantised, or they are not those of the model."""
    checkpoint, planned = found.checkpoint, found.planned
    if checkpoint is None or planned is None or not any(each.format for each in checkpoint.info.values()):
        return None
    if planned.unclaimed or planned.unfilled or planned.twice_filled or any(faults(planned, checkpoint.info).values()):
        return None
    model = skeleton(found.spec, dtype)
    tile = ops.select("auto", device, dtype).tile if device.type == "cpu" else 1
    segments = holding.segments(checkpoint, planned, held.holdable(model), dtype, tile)
    made = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    for name, each in segments.items():
        parts = (part for segment in each for part in segment.parts(tuple(model.get_parameter(name).shape)).values())
        made[name] = sum(torch.Size(size).numel() * kind.itemsize for size, kind in parts)
    return made
