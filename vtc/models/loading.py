"""Weights of a checkpoint, and its tokenizer, through `transformers`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from vtc.errors import ModelError, one_line
from vtc.finite import first_not_finite
from vtc.machine import machine_fault
from vtc.models.checkpoint_files import weight_files
from vtc.models.placing import Placed, offloaded


def without_progress_bars() -> None:
    """Keep `transformers` from drawing any: reading local weights takes a moment, and errors are to be one line."""
    quiet: Any = hf_logging.disable_progress_bar
    quiet()


def load_weights(path: Path, model_class: type[PreTrainedModel], placed: Placed) -> Any:
    """Load a model, from safetensors only.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    model_class : type
    placed : Placed
        Where its parts go, and in which type.

    Returns
    -------
    PreTrainedModel

    Raises
    ------
    ModelError
        If weights are missing or damaged, or one is no finite number.
    """
    without_progress_bars()
    load_model: Any = model_class.from_pretrained
    try:
        model, report = load_model(
            path,
            dtype=placed.dtype,
            device_map=placed.device_map,
            offload_folder=None if placed.folder is None else placed.folder.name,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise kinds of their own
        raise machine_fault(error, path) or ModelError(
            f"{path}: checkpoint cannot be loaded ({one_line(error)}); fetch it again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{path}: checkpoint cannot be loaded (weights lack {missing[0]} and {len(missing) - 1} more); "
            "fetch it again"
        )
    if (name := first_not_finite(_numbers(path, model))) is not None:
        raise ModelError(f"{path}: weights of {name} are not all finite numbers; fetch or train them again")
    model.offload_folder = placed.folder  # which is removed with the model
    return model


def _numbers(path: Path, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Weights by name; of a model whose parts stay on the disk those of its files, one at a time."""
    if not offloaded(model):
        yield from model.state_dict().items()
        return
    for file in weight_files(path):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                yield name, stored.get_tensor(name)


def load_tokenizer(path: Path) -> Any:
    """Load a checkpoint's tokenizer.

    Raises
    ------
    ModelError
        If its files cannot be used.
    """
    load: Any = AutoTokenizer.from_pretrained
    try:
        return load(path, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise machine_fault(error, path) or ModelError(
            f"{path}: tokenizer cannot be loaded ({one_line(error)}); fetch tokenizer.json, tokenizer_config.json and "
            "what lies beside them again"
        ) from error
