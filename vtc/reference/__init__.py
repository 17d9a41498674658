"""The reference VLM: a small LLaVA-architecture model, its scenes and its training; and a mixture made of it."""

from __future__ import annotations

from pathlib import Path

SHIPPED = {
    "reference": ("weights", "the reference VLM that ships with vtc"),
    "reference-moe": ("mixture", "the same, its decoder a mixture of 8 experts of which a token passes 2"),
}
"""Models that ship with vtc, by the name that a user types: directory beside this file, and what it is."""


def is_shipped(name: str | Path) -> bool:
    """Whether a model is called by the name of one that ships with vtc."""
    return str(name) in SHIPPED


def reference_dir(name: str | Path = "reference") -> Path:
    """Directory of a shipped checkpoint, in Hugging Face layout.

    Returns
    -------
    Path
        ``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor.from_pretrained`` load it.
    """
    return Path(__file__).parent / SHIPPED[str(name)][0]


def reference_part(stem: str) -> Path:
    """File of a trained part that ships with the reference VLM, such as its ``pruner``; it may not exist.

    Its training log lies beside it. It is kept outside of the checkpoint's directory, whose safetensors files make up
    the model's digest.
    """
    return Path(__file__).parent / f"{stem}.safetensors"
