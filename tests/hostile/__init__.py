"""Inputs that once broke something, and their siblings, through the commands."""
