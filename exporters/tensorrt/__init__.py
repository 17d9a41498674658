"""Engines of a bundle by TensorRT, or TensorRT for RTX."""
