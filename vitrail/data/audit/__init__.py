"""The audit of a data set: unreadable images, duplicates, leaks between splits, label conflicts."""
