"""Runs bundles: numpy, pillow, tokenizers and ONNX Runtime or TensorRT; never torch, never transformers."""
