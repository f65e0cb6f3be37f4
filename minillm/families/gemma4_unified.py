"""Llama, except: all that Gemma 4 changes but embeddings of the layers and mixtures of experts.

Gemma 4 12B (2026), the text model, which also reads images and sound without towers: what they go through is left out.
"""

from __future__ import annotations

from minillm.families import gemma4

DEFAULTS = {
    **gemma4.DEFAULTS,
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
}
TRANSFORMERS = gemma4.TRANSFORMERS
inner, rules, spec = gemma4.inner, gemma4.rules, gemma4.spec
