"""A look inside one forward pass: next tokens, the logit lens, attention, norms.

Read in this order: `__main__.py`, `forward.py` (the pass and what it records), `sampling.py`, `text.py`,
`plot.py`, `page.py` with `script.py` (the HTML page).
"""
