"""Decode steps recorded and replayed, on a GPU that is made up (`recording.py`): a replay is what a step by itself is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import FAST
from recording import Gpu
from rows import BASE, ROWS
from test_laws import build, random_tokens, specs
from torch import Tensor

from minillm import graphs
from minillm.cache import Cache
from minillm.families import resolve
from minillm.graphs import DecodeGraph, decoder_step
from minillm.model import Decoder
from minillm.ops import CPU, REFERENCE, Ops, select
from minillm.spec import Decoder as Spec
from minillm.spec import DynamicScaling, GatedMLP, LongRopeScaling, MoE

TRITON = select("triton", torch.device("cpu"), torch.float32)
EXACT = 2e-5  # as in test_laws.py


def of(row: str, ops: Ops = TRITON) -> Decoder:
    family, overrides = ROWS[row]
    return with_ops(build(resolve({**BASE, "model_type": family, **overrides})[0]), ops)


def with_ops(plain: Decoder, ops: Ops) -> Decoder:
    model = Decoder(plain.spec, ops)
    model.load_state_dict(plain.state_dict())
    return model
