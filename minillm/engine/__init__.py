"""From prompts to tokens. Read in this order: `inference.py` (prefill, then decode), `completion.py` and `asked.py`
(one request), `batching/` (many requests at once, guesses included), `choosing.py` and `sampling.py` (the next token),
`decoding.py` (how a list of requests runs); then `graphs.py` and `tape.py`, which record a decode step and replay it.
`scoring.py` and `windows.py` read texts instead of writing them."""
