"""Llama, except: all that Qwen3 changes.

The text model of Qwen3-VL 2B, 4B, 8B, 32B (arXiv:2511.21631): images are not read, and their tensors are left out. What
DeepStack adds to the first layers is nothing where there is text alone.
"""

from __future__ import annotations

from minillm.families import qwen3
from minillm.families.shared import wrapped

DEFAULTS = {**qwen3.DEFAULTS, "max_position_embeddings": 128000, "rope_theta": 500000.0}
RULES = wrapped.rules(qwen3.RULES)
inner, spec = wrapped.inner_of_text, qwen3.spec
