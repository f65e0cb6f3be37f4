"""The CPU path: loops that numba compiles. `cpu_ops.py` puts them behind the seam."""
