"""Checks of the examples in docs/extending.md, run by tests/test_extending.py in a copy that has the examples."""
