"""Weights of a checkpoint, and its tokenizer, through `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from vtc.errors import ModelError, one_line
from vtc.finite import first_not_finite
from vtc.machine import machine_fault


def without_progress_bars() -> None:
    """Keep `transformers` from drawing any: reading local weights takes a moment, and errors are to be one line."""
    quiet: Any = hf_logging.disable_progress_bar
    quiet()


def load_weights(path: Path, model_class: type[PreTrainedModel]) -> Any:
    """Load a model in float32, from safetensors only.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    model_class : type

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
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
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
    if (name := first_not_finite(model.state_dict().items())) is not None:
        raise ModelError(f"{path}: weights of {name} are not all finite numbers; fetch or train them again")
    return model


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
