"""The tower that reads pictures or sound: `tower.py`, then `projector.py`, `turning.py` and `clipped.py`."""
