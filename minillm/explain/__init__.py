"""Describes a checkpoint without reading its weights: spec, sizes, equations and tensors.

Read in this order: `__main__.py` (the report and the table), `equations.py` and `scanned.py` (the formulas of
each layer), `tower.py` (what sees or hears).
"""
