"""Reading the file of a trained selector: safetensors with what it was trained on as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vtc.errors import InputError


def read_trained(path: Path, what: str, model_digest: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a trained selector.

    Parameters
    ----------
    path : Path
    what : str
        What it is called in messages.
    model_digest : str
        SHA-256 of the model that runs here.

    Raises
    ------
    InputError
        If the file is missing or damaged, or was trained on another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: {what} checkpoint cannot be read ({error})") from None
    trained_on = metadata.get("model_sha256")
    if trained_on != model_digest:
        raise InputError(
            f"{path}: {what} was trained on model {str(trained_on)[:12]}, not {model_digest[:12]}; train it again"
        )
    return tensors, metadata


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Put tensors into a module.

    Raises
    ------
    InputError
        If they do not fit: the file is not a `what`.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: not a {what} ({' '.join(str(error).split())})") from None
