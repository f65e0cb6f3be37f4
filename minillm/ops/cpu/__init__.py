"""The ops on a CPU: `ops.py` and `matrices.py` choose for each call between PyTorch and a compiled loop; `loops/` has
the loops, in Python that numba compiles."""
