"""The tower of a checkpoint, which is loaded when there is the first picture or sound: a text does without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minillm.families.media import is_part, media
from minillm.guard.screen import note
from minillm.media import settings
from minillm.media.prompts import Reader
from minillm.model.filling import on_meta
from minillm.model.tower.tower import Tower
from minillm.text.tokenizer import Tokenizer
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.load import check
from minillm.weights.load import load as load_weights
from minillm.weights.rules import plan


def load(
    folder: Path,
    values: Mapping[str, Any],
    tokenizer: Tokenizer,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Reader:
    """The reader of a folder with this config.json. Raises ValueError for a checkpoint that sees and hears nothing, and
    for whatever is wrong with one that does."""
    found = media(values)
    if found is None:
        kind = values.get("model_type")
        raise ValueError(f"{folder}: this checkpoint ({kind}) reads text alone here; leave pictures and sounds out")
    made, rules, config = found
    if config.unread:
        note(f"config.json keys not understood and ignored: {', '.join(config.unread)}")
    read = settings.read(folder, made)
    tower = on_meta(lambda: Tower(made.encoder), dtype)
    checkpoint = Checkpoint(folder, values.get("quantization_config"))
    names = [name for name in checkpoint.info if is_part(name)]
    planned = plan(names, rules, tower.destinations())
    if not names:
        raise ValueError(f"{folder}: the config has a part that reads {made.kind}s, the weights have none of it")
    check(planned, checkpoint)
    parameters = load_weights(checkpoint, planned, dict(tower.named_parameters()), device)
    tower.load_state_dict(parameters, assign=True)
    return Reader(made, tower.requires_grad_(False).eval(), read, tokenizer, context)
