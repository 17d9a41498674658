"""Data sets, samples of them, and distances between distributions."""
