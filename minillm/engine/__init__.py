"""From prompts to tokens. Read in this order: `inference.py` (prefill, then decode), `completion.py` (one request),
`batching/` (many requests at once), `choosing.py` and `sampling.py` (the next token), `speculative.py`, `decoding.py`
(which loop runs); then `graphs.py` and `tape.py`, which record a decode step and replay it. `scoring.py` and
`windows.py` read texts instead of writing them."""
