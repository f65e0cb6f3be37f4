"""Measures speed, against the limits of the machine and against other engines.

Read in this order: `__main__.py`, `engines.py` (one process each, in turns) with `worker.py` (what runs in it),
`weights.py` (random weights in published shapes), `report.py`, `plot.py`; then the modes `kernels.py` with
`cases.py`, `profile.py` with `hooks.py`, `throughput.py`, `seeing.py`, `serving.py` with
`client.py`, and `http.py` with `alone.py`.
"""
