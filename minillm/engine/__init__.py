"""From prompts to tokens. Read in this order: `inference.py` (prefill, then decode), `batch.py` (the loop over many
rows), `completion.py` (one request), `sampling.py`, `speculative.py`; then `graphs.py` and `tape.py`, which record a
decode step and replay it."""
