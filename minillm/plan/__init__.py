"""What a checkpoint needs, before it is downloaded: bytes, cache, operations, devices, licence.

Read in this order: `__main__.py`, `budget.py` (all figures of a plan), `storage.py` (bytes in files), `fit.py` (does
it fit on a device, how fast can it be), `shares.py` (what each of several ranks takes), `devices.py`, `layouts.py`,
`card.py` (the licence), `report.py`, `plot.py`.
"""
