"""Hostile inputs, made by chance but the same for the same seed: `python -m tests.fuzz`.

`case.py` is what a case is, `honest.py` the tiny checkpoint that all begin with. A file per class of inputs has
`cases(seed)`, which never ends. `worker.py` runs cases in a process that may die, `pool.py` watches it and judges.
"""
