"""Judges: an evaluator runs a task over a source and yields (name, value)."""
