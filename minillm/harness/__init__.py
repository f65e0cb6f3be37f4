"""The tasks of EleutherAI's lm-evaluation-harness.

Read in this order: `__main__.py` (registers the model and calls `lm_eval`), `model.py` (the model behind the
harness interface).
"""
