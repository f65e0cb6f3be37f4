"""Inputs that the generators found, one at a time."""
