"""Llama, except: all that Mamba changes; the vector of the steps, B and C are normalised, without weights.

Falcon-Mamba-7B (TII, 2024; Zuo et al., arXiv:2410.05355).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import mamba
from minillm.spec import Decoder, Norm

DEFAULTS = {**mamba.DEFAULTS, "mixer_rms_eps": 1e-6}
RULES = mamba.RULES


def spec(config: Config) -> Decoder:
    return mamba.alone(config, Norm(config.number("mixer_rms_eps"), affine=False))
