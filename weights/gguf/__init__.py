"""GGUF, the one file that llama.cpp runs a model from: numbers and vocabulary by key, and tensors in blocks.

`reader.py` checks and reads what stands before the tensors, `kinds.py` lists the types of blocks with their layouts in
`simple.py`, `super.py` and `grids.py`, `tensors.py` gives a checkpoint its tensors, and `writer.py` writes files.
"""
