"""The tower that reads pictures or sound: `tower.py`, then `projector.py` and `turning.py`."""
