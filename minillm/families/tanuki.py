"""Llama, except: Mixtral's experts, with each token's router logits brought to mean 0 and deviation 1 over the experts
before the softmax: (l - mean) / (std + 1e-5), the deviation unbiased.

Tanuki-8x8B (weblab-GENIAC). No class of transformers runs it; the formula is that of the authors' vLLM fork. Run as a
plain Mixtral, which its GGUF conversions do, it loses quality by its own card's account.
"""

from __future__ import annotations

from minillm.config import Config, number
from minillm.families import mixtral
from minillm.families.shared import common
from minillm.spec import Decoder

DEFAULTS = mixtral.DEFAULTS
RULES = mixtral.RULES
TRANSFORMERS = mixtral.TRANSFORMERS


def spec(config: Config) -> Decoder:
    number("router_jitter_noise", config.get("router_jitter_noise") or 0, low=0)  # of training
    return mixtral.sparse(config, common.router(config, "num_local_experts", renormalize=True, normalize="logits"))
