"""Continuous batching over a cache in blocks. Read in this order: `request.py` (what is under way), `blocks.py` and
`names.py` (who uses which block, and what an unused one still holds), `store.py` (the memory of all requests),
`scheduler.py` and `pace.py` (what goes through the model next), `passes.py` and `recorded.py` (one pass), `engine.py`
(the loop), `threaded.py` (the loop in a thread, for a server)."""
