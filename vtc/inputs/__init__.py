"""Pixels, prompts and token positions. numpy only: the PyTorch model and the runtime share it."""
