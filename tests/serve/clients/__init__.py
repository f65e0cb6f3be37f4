"""Frameworks that people use, against a real server: see `__main__.py`."""
