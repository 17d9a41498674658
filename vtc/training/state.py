"""A training run on disk: one file, replaced whole, from which an interrupted run goes on as if never stopped."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.finite import first_not_finite

_log = logging.getLogger(__name__)

Row = dict[str, float]


def state_path(part: Path) -> Path:
    """Where an unfinished training of a part keeps its state."""
    return part.with_name(f".{part.stem}-state.safetensors")


def save_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, log: list[Row], fingerprint: str
) -> None:
    """Write parameters, the optimiser's moments, the number of steps done and the log so far."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"parameter {name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key} {name}"] = torch.as_tensor(value).cpu().contiguous()
    draft = path.with_suffix(".tmp")
    metadata = {"fingerprint": fingerprint, "step": str(step), "log": json.dumps(log)}
    save_file(tensors, draft, metadata=metadata)
    os.replace(draft, path)


def load_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[int, list[Row]]:
    """Put a saved state back in place.

    Returns
    -------
    step : int
        Steps done; 0 where there is no state, a damaged one, or one of another run.
    log : list of rows

    Raises
    ------
    InputError
        If the state holds numbers that are not finite: the training went wrong.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return 0, []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        step, log = int(metadata["step"]), list(json.loads(metadata["log"]))
        if any(tensors[f"parameter {name}"].shape != own.shape for name, own in module.named_parameters()):
            raise ValueError("parameters of other shapes")
    except FileNotFoundError:
        return 0, []
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        _log.warning("%s: notes of an interrupted training are damaged; it begins anew", path)
        return 0, []
    if (name := first_not_finite(tensors.items())) is not None:
        raise InputError(f"{path}: {name} is not all finite numbers; remove the file, or compress to another directory")
    for name, parameter in module.named_parameters():
        mine = {key.split(" ")[0]: value for key, value in tensors.items() if key.endswith(f" {name}")}
        with torch.no_grad():
            parameter.copy_(mine.pop("parameter"))
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device) for key, value in mine.items()
        }
    return step, log
