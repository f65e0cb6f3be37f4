"""The tasks of EleutherAI's lm-evaluation-harness.

Read in this order: `__main__.py` (makes the model known and calls `lm_eval`), `model.py` (the model as the harness
asks for it).
"""
