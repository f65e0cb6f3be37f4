"""Where two implementations of a model first differ, by how much, and why.

Read in this order: `__main__.py`, `trace.py` (the input and output of each module), `names.py` (the names of the
modules in the reference), `compare.py` (errors by module), `replay.py` (one module op by op in fp64), `causes.py` with
`alternatives.py` (which field of the spec explains it), `signs.py` (other hints at a cause), `report.py`.
"""
