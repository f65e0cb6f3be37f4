"""Compressed attention: `attention.py` is the layer, `entries.py` makes and chooses what stands for blocks of
positions, `rows.py` is what is kept of the past."""
