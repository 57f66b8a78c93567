"""Schedules, parameter groups and optimisers: import the file you need."""
