"""The paper's comparison on any data: a grid of runs, fits of their errors, and what they say."""
