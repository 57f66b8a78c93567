"""What a model is trained for: each task turns a batch into a loss."""
