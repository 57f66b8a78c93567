"""Pages about a run or a data set: one HTML file each, with everything it needs inside."""
