"""Checkpoints in their makers' own layouts, with a `params.json` in place of config.json.

Read in this order: `params.py` (values and names), `meta.py` and `mistral.py` (what each says), `layouts.py` (which of
them a folder is, and what its tensors fill).
"""
