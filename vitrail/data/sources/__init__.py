"""Sources: every kind of place that holds images, and the door to them (open.py)."""
