"""Runs bundles: numpy, pillow, tokenizers and ONNX Runtime or TensorRT; never torch, never transformers."""

BACKENDS = ("onnxruntime", "tensorrt")
"""What can run a bundle, in the words of ``--backend``; the first is the default."""
