"""From a spec to modules. Read in this order: `decoder.py` (the stack of blocks), `attention.py` with `rope.py` and
`cache.py`, `ffn.py`, `moe.py`, `mla.py`; then `norm.py`, `linear.py` and `held.py` (weights kept quantised)."""
