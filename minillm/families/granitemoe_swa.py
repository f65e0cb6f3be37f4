"""Llama, except: all that Granite's mixtures change, a shared expert if there is one, and the windows, sinks and rotary
bases of Granite Swash.

Granite Swash 3B-A600M (IBM, 2026).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import granite_swa, granitemoeshared
from minillm.spec import Decoder

DEFAULTS = {**granitemoeshared.DEFAULTS, **granite_swa.WINDOWS}
MIXTURE, FFN = "model.layers.{i}.block_sparse_moe.", "layers.{i}.ffn."
RULES = {
    **granitemoeshared.RULES,
    **granite_swa.SINKS,
    f"{MIXTURE}router.weight": f"{FFN}router.weight",
    f"{MIXTURE}experts.gate_up_proj": f"{FFN}experts.gate_up",
    f"{MIXTURE}experts.down_proj": f"{FFN}experts.down",
}


def spec(config: Config) -> Decoder:
    return granite_swa.windowed(config, granitemoeshared.spec(config))
