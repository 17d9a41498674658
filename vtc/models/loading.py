"""Weights and tokenizer of a checkpoint, through `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from vtc.errors import ModelError, one_line
from vtc.finite import first_not_finite
from vtc.machine import machine_fault
from vtc.models.parameter_count import check_parameter_count


def load_weights(path: Path, model_class: type[PreTrainedModel], config: Any) -> tuple[Any, Any]:
    """Load a model in float32, from safetensors only, and its tokenizer.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    model_class : type
    config : PretrainedConfig

    Returns
    -------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    ModelError
        If weights or tokenizer are missing or damaged, or a weight is no finite number.
    """
    quiet: Any = hf_logging.disable_progress_bar
    quiet()  # reading local weights takes a moment, and errors are to be one line
    load_model: Any = model_class.from_pretrained
    load_tokenizer: Any = AutoTokenizer.from_pretrained
    try:
        check_parameter_count(path, model_class, config)
        model, report = load_model(
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        tokenizer = load_tokenizer(path, local_files_only=True)
    except ModelError:
        raise
    except Exception as error:  # transformers, safetensors and tokenizers each raise kinds of their own
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
    return model, tokenizer
