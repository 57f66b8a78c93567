"""How a model is computed on a machine: precision, compilation, threads, transfers, interruption."""
