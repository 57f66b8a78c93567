"""Weights in and out of files, each format with its own numerics."""
