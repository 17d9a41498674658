"""Models with random weights, of any size, for tests and timing."""
