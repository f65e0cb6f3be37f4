"""One forward pass to look into: next tokens, the logit lens, attention, norms.

Read in this order: `__main__.py`, `forward.py` (the pass and what is kept of it), `sampling.py`, `text.py`,
`plot.py`, `page.py` with `script.py` (the HTML page).
"""
