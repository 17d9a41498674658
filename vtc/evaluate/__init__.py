"""Judges a compressed model against the original: accuracy, fidelity, a gate, and speed."""
