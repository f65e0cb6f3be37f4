"""Llama, except: all that EXAONE 4.0 32B changes.

The text model of EXAONE 4.5 33B (LG AI Research, 2026): the tensors for images and for multi-token prediction are left
out.
"""

from __future__ import annotations

from minillm.families import exaone4
from minillm.families.shared import common, wrapped

DEFAULTS = exaone4.DEFAULTS
TRANSFORMERS = wrapped.TRANSFORMERS
RULES = {**wrapped.rules(exaone4.RULES), "mtp.*": common.AHEAD}
inner, spec = wrapped.inner, exaone4.spec
