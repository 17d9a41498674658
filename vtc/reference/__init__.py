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


def reference_part(stem: str) -> Path:
    """File of a trained part that ships with the reference VLM, such as its ``pruner``; it may not exist.

    Its training log lies beside it. It is kept outside of the checkpoint's directory, whose safetensors files make up
    the model's digest.
    """
    return Path(__file__).parent / f"{stem}.safetensors"
