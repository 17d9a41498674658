"""A model with a recipe applied: the PyTorch reference that every exported bundle is compared with."""
