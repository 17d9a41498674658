"""The reference VLM: a small LLaVA-architecture model, its scenes and its training."""

from __future__ import annotations

from pathlib import Path


def reference_dir() -> Path:
    """Directory of the shipped checkpoint, in Hugging Face layout.

    Returns
    -------
    Path
        ``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor.from_pretrained`` load it.
    """
    return Path(__file__).parent / "weights"


def reference_pruner() -> Path:
    """File of the learned pruner that ships with the reference VLM; its training log lies beside it.

    Outside of the checkpoint's directory, whose safetensors files make up the model's digest.
    """
    return Path(__file__).parent / "pruner.safetensors"


def reference_relevance() -> Path:
    """File of the relevance network that ships with the reference VLM; its training log lies beside it."""
    return Path(__file__).parent / "relevance.safetensors"
