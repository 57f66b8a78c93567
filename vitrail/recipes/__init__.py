"""Recipes: functions that return a Run; a docstring states command, cost and expected score."""
