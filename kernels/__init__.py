"""Triton kernels, one op per file, each with its guarded wrapper; they import torch and triton only."""
