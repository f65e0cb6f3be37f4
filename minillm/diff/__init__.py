"""Where two implementations of a model differ first, by how much, and why.

Read in this order: `__main__.py`, `trace.py` (what each module was given and gave), `names.py` (which module is which
in the reference), `compare.py` (errors by module), `replay.py` (one module op by op in fp64), `causes.py` with
`alternatives.py` (which field of the spec explains it), `signs.py` (what else points to a cause), `report.py`.
"""
