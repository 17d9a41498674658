"""A trained selector as a file: safetensors with what it was trained on, and how, as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vtc.selectors.decoder.relevance import Relevance
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
RELEVANCE_LOG_FIELDS = ("epoch", "seconds", "kl", "learning_rate", "validation_kl", "validation_overlap")


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
    own = {"layer": layers[-1], "encoder_layers": layer_list(layers), "width": selector.width}
    _save(path, selector, {"model_sha256": model_digest, **own, **(facts or {})})


def save_relevance(
    path: Path, selector: Relevance, *, model_digest: str, facts: Mapping[str, object] | None = None
) -> None:
    """Write a relevance network, whole or not at all; arguments as for :func:`save_pruner`."""
    _save(path, selector, {"model_sha256": model_digest, "decoder_layer": selector.layer, **(facts or {})})


def _save(path: Path, selector: nn.Module, facts: Mapping[str, object]) -> None:
    metadata = {"vtc_version": version("vtc"), **{name: str(value) for name, value in facts.items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in selector.state_dict().items()}
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft, metadata=metadata)
    os.replace(draft, path)


def log_path(pruner: Path) -> Path:
    """Where the log of a trained selector's training is."""
    return pruner.with_name(f"{pruner.stem}_log.csv")


def read_metadata(path: Path) -> dict[str, str]:
    """A trained selector's metadata; empty where there is no such file or it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def fits(path: Path, *, model_digest: str, layers: Sequence[int], width: int) -> bool:
    """Whether a file holds a pruner trained on this very model, these encoder layers and this width."""
    return _says(path, {"model_sha256": model_digest, "encoder_layers": layer_list(layers), "width": str(width)})


def relevance_fits(path: Path, *, model_digest: str, layer: int) -> bool:
    """Whether a file holds a relevance network trained on this very model and decoder layer."""
    return _says(path, {"model_sha256": model_digest, "decoder_layer": str(layer)})


def _says(path: Path, wanted: Mapping[str, str]) -> bool:
    metadata = read_metadata(path)
    return all(metadata.get(name) == value for name, value in wanted.items())
