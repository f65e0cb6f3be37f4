"""What adapters add to a model: `deltas.py` has the arithmetic, `adapted.py` which of them a step goes through."""
