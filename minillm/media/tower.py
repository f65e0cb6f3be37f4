"""The tower of a checkpoint, which is loaded when there is the first picture or sound: a text does without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minillm.config import Config
from minillm.families.media import is_part, media
from minillm.guard.screen import note
from minillm.media import settings
from minillm.media.prompts import Reader
from minillm.model.filling import on_meta
from minillm.model.tower.tower import Tower
from minillm.ops import REFERENCE, Ops
from minillm.spec.media import Media
from minillm.text.tokenizer import Tokenizer
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.load import check
from minillm.weights.load import load as load_weights
from minillm.weights.rules import Rules, plan

# What k's bias adds is the same for all scores of a query, so nothing behind softmax: some towers have none.
KEY_BIAS = "attention.qkv.bias[k]"


def supported(values: Mapping[str, Any]) -> tuple[Media, Rules, Config] | None:
    """What a config.json says of its tower; None where there is none, or one that cannot be: text is read all the
    same."""
    try:
        return media(values)
    except ValueError:
        return None


def outlined(values: Mapping[str, Any], dtype: torch.dtype) -> tuple[Media, Tower] | None:
    """What a config.json says of its tower, and the tower on the meta device; None where there is none, or one that
    cannot be, of which the first picture tells."""
    found = supported(values)
    return found and (found[0], on_meta(lambda: Tower(found[0].encoder), dtype))


def nbytes(values: Mapping[str, Any], dtype: torch.dtype) -> int:
    """What the tower of a config.json takes in memory."""
    found = outlined(values, dtype)
    return sum(each.nbytes for each in found[1].parameters()) if found else 0


def weights(
    folder: Path, values: Mapping[str, Any], dtype: torch.dtype, device: torch.device, ops: Ops = REFERENCE
) -> tuple[Media, Tower]:
    """What the config.json of a folder says of its tower, and the tower itself, which computes with `ops` but for
    attention: the decoder's kernels take it that a query sees what stands before it. Raises ValueError for a checkpoint
    that sees and hears nothing, and for tensors that are not those of the config."""
    found = media(values)
    if found is None:
        kind = values.get("model_type")
        raise ValueError(f"{folder}: this checkpoint ({kind}) reads text alone here; leave pictures and sounds out")
    made, rules, config = found
    if config.unread:
        note(f"config.json keys not understood and ignored: {', '.join(config.unread)}")
    ops = replace(ops, attention=REFERENCE.attention)
    tower = on_meta(lambda: Tower(made.encoder, ops), dtype)
    checkpoint = Checkpoint(folder, values.get("quantization_config"))
    names = [name for name in checkpoint.info if is_part(name)]
    if not names:
        raise ValueError(f"{folder}: the config has a part that reads {made.kind}s, the weights have none of it")
    planned = plan(names, rules, places := tower.destinations())
    absent = [name for name in planned.unfilled if name.endswith(KEY_BIAS)]
    planned.unfilled = [name for name in planned.unfilled if name not in absent]
    planned.zeros = [places[name] for name in absent]
    check(planned, checkpoint)
    parameters = load_weights(checkpoint, planned, dict(tower.named_parameters()), device)
    tower.load_state_dict(parameters, assign=True)
    return made, tower.requires_grad_(False).eval()


def load(
    folder: Path,
    values: Mapping[str, Any],
    tokenizer: Tokenizer,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops = REFERENCE,
) -> Reader:
    """The reader of a folder with this config.json. Raises ValueError as `weights` does, and for processor files that
    are missing or cannot be."""
    made, tower = weights(folder, values, dtype, device, ops)
    clips = partial(settings.clips, folder, made) if made.video else None
    return Reader(made, tower, settings.read(folder, made), tokenizer, context, clips)
