"""A trained pruner as a file: safetensors with what it was trained on, and how, as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vtc.selectors.learned import Learned, layer_list

LOG_FIELDS = (
    "step",
    "seconds",
    "loss",
    "lm",
    "kl",
    "budget",
    "kept_ratio",
    "learning_rate",
    "validation_accuracy",
)


def save_pruner(
    path: Path,
    selector: Learned,
    *,
    model_digest: str,
    layers: Sequence[int],
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write a pruner, whole or not at all.

    Parameters
    ----------
    path : Path
    selector : Learned
    model_digest : str
    layers : sequence of int
        Encoder layers that ran, the last one's output being what the pruner reads.
    facts : mapping
        How it was trained, for the record; values are written as text.
    """
    metadata = {
        "model_sha256": model_digest,
        "layer": str(layers[-1]),
        "encoder_layers": layer_list(layers),
        "width": str(selector.width),
        "vtc_version": version("vtc"),
        **{name: str(value) for name, value in (facts or {}).items()},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in selector.state_dict().items()}
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft, metadata=metadata)
    os.replace(draft, path)


def log_path(pruner: Path) -> Path:
    """Where the log of a pruner's training is."""
    return pruner.with_name(f"{pruner.stem}_log.csv")


def read_metadata(path: Path) -> dict[str, str]:
    """A pruner file's metadata; empty where there is no such file or it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def fits(path: Path, *, model_digest: str, layers: Sequence[int], width: int) -> bool:
    """Whether a file holds a pruner trained on this very model, these encoder layers and this width."""
    metadata = read_metadata(path)
    wanted = {"model_sha256": model_digest, "encoder_layers": layer_list(layers), "width": str(width)}
    return all(metadata.get(name) == value for name, value in wanted.items())
