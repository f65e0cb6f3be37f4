"""What ranks behind the first do: what that one tells them, until it ends."""

from __future__ import annotations

import hashlib
import signal
import threading
from typing import Any

import torch

from minillm import __version__
from minillm.engine.batching.runner import Runner
from minillm.model.decoder import Decoder
from minillm.model.pools import group_of
from minillm.parallel.ranks import Ranks


def begin(model: Decoder, ranks: Any, what: str) -> None:
    """Find that all `Ranks` have the same model, of which `what` says where it is from; those behind the first follow
    it then, and end with it. Raises ValueError where they have not."""
    ranks.agreed(begun(model, what, ranks.staged))
    if ranks.rank:
        follow(model, ranks)
        ranks.leave()


def begun(model: Decoder, what: str, staged: bool = False) -> str:
    """What a rank has begun with, as a digest: this version, where the model is from, its norms."""
    made = hashlib.sha256(f"{__version__} {what}".encode())
    for name, parameter in model.named_parameters():
        if staged and name.startswith("layers."):
            continue  # each has others
        if name.endswith("norm.weight") and not name.endswith(("q_norm.weight", "k_norm.weight")):  # each has all of it
            made.update(parameter.detach().cpu().view(torch.uint8).numpy().data)
    return made.hexdigest()


@torch.inference_mode()
def follow(model: Decoder, ranks: Ranks) -> None:
    """Returns when the first rank has nothing more to do."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first rank
    runners: dict[int, Runner] = {}
    groups = {repr(group): group for group in map(group_of, model.spec.mixers)}
    while True:
        what, tensors, given = ranks.told()
        for number in given.pop("gone"):
            del runners[number]
        if what == "end":
            return
        number = given.pop("number")
        if what == "open":
            runners[number] = Runner(model, {groups[name]: count for name, count in given["blocks"]})
        else:
            runners[number].obey(what, tensors, given)
