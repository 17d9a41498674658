"""From a compressed model to files that other runtimes load."""
