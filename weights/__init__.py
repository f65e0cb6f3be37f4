"""Checkpoint formats: reading, renaming, placing. Knows tensors, names and rules; nothing of models or families."""
