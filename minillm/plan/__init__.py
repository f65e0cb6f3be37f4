"""What a checkpoint takes before anything of it is downloaded: bytes, cache, operations, devices, licence.

Read in this order: `__main__.py`, `budget.py` (all figures of a plan), `storage.py` (bytes in files), `fit.py` (does
it fit a device, how fast could it be), `devices.py`, `layouts.py`, `card.py` (the licence), `report.py`, `plot.py`.
"""
