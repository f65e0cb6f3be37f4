"""What a checkpoint is, without reading its weights: its spec, sizes, equations and tensors.

Read in this order: `__main__.py` (the report and the table), `equations.py` (each layer as formulas).
"""
