"""Where a mixture of experts sends its tokens.

Read in this order: `__main__.py`, `record.py` (the routing of a text), `measure.py` (loads, pairs, margins),
`drift.py` (against another run), `text.py`, `plot.py`, `page.py` with `script.py` (the HTML page).
"""
