"""Runs bundles: numpy, pillow, tokenizers and an ONNX Runtime session; never torch, never transformers."""
