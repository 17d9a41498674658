"""Files of trained parts: safetensors, with what a part was made for and how it was trained as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.finite import first_not_finite
from vtc.machine import machine_fault
from vtc.runtime.versions import vtc_version

MODEL = "model_sha256"


class TrainedPart(nn.Module):
    """A selector or a stage with parameters that training made for one model and one place in it."""

    noun: ClassVar[str]
    """What messages call it."""

    @property
    def made_for(self) -> Mapping[str, str]:
        """What a file of its parameters must say beside the model: name to value."""
        raise NotImplementedError

    def accepts(self, name: str, stored: str | None) -> bool:
        """Whether what a file says under one of the names of `made_for` is right for this part."""
        return stored == self.made_for[name]

    def prepare(self, config: Any, progress: float) -> None:
        """Be told before a step of training what is trained how, and what share of the steps is done."""

    def penalty(self) -> Tensor | None:
        """What the loss of the step that was just computed gets on top of it."""
        return None


def trained_part(module: nn.Module | None) -> TrainedPart | None:
    """The part of a stage that training makes, if it has one."""
    return None if module is None else next((m for m in module.modules() if isinstance(m, TrainedPart)), None)


def save_trained(path: Path, part: TrainedPart, model_digest: str, facts: Mapping[str, object] | None = None) -> None:
    """Write a trained part, whole or not at all.

    Parameters
    ----------
    path : Path
    part : TrainedPart
    model_digest : str
        SHA-256 of the model that it was trained on.
    facts : mapping
        How it was trained, for the record; values are written as text.
    """
    own = {"vtc_version": vtc_version(), MODEL: model_digest, **part.made_for}
    metadata = {**own, **{name: str(value) for name, value in (facts or {}).items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in part.state_dict().items()}
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft, metadata=metadata)
    os.replace(draft, path)


def load_trained(path: Path, part: TrainedPart, model_digest: str) -> None:
    """Fill a part from a file.

    Parameters
    ----------
    path : Path
    part : TrainedPart
        As it was built for this model and its place in it.
    model_digest : str
        SHA-256 of the model that runs here.

    Raises
    ------
    InputError
        If the file is missing or damaged, holds something else, or was trained on another model or for another place.
    """
    tensors, metadata = _read(path, part.noun)
    trained_on = metadata.get(MODEL)
    if trained_on != model_digest:
        raise InputError(
            f"{path}: {part.noun} was trained on model {str(trained_on)[:12]}, not {model_digest[:12]}; train it again"
        )
    for name, value in part.made_for.items():
        if not part.accepts(name, metadata.get(name)):
            raise InputError(
                f"{path}: {part.noun} was trained for {name.replace('_', ' ')} {metadata.get(name)}, "
                f"here it is {value}; train it again"
            )
    if (wrong := first_not_finite(tensors.items())) is not None:
        raise InputError(f"{path}: {wrong} of the {part.noun} is not all finite numbers; train it again")
    try:
        part.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: not a {part.noun} ({' '.join(str(error).split())})") from None


def fits(path: Path, part: TrainedPart, model_digest: str) -> bool:
    """Whether a file holds such a part, trained on this very model and for this place."""
    metadata = read_metadata(path)
    own = all(part.accepts(name, metadata.get(name)) for name in part.made_for)
    return own and metadata.get(MODEL) == model_digest


def read_metadata(path: Path) -> dict[str, str]:
    """A file's metadata; empty where there is no such file or it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def log_path(path: Path) -> Path:
    """Where the log of a trained part's training is."""
    return path.with_name(f"{path.stem}_log.csv")


def _read(path: Path, noun: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise machine_fault(error, path) or InputError(f"{path}: {noun} checkpoint cannot be read ({error})") from None
