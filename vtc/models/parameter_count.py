"""Whether a configuration describes the weights beside it, found out before either is put into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from vtc.errors import ModelError

SLACK = 10_000_000
"""Parameters that a model may have beyond its weights: parts that are made and not stored."""


def check_parameter_count(path: Path, model_class: Any, config: Any, stored: int) -> None:
    """Make sure that a model is not much larger than its weights: a configuration without its parts gets defaults.

    Parameters
    ----------
    path : Path
    model_class : type
        Of `transformers`.
    config : PretrainedConfig
    stored : int
        Numbers in the files of its weights.

    Raises
    ------
    ModelError
        If the model has more than twice the parameters that are stored.
    """
    with torch.device("meta"), no_init_weights():
        model = model_class(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if wanted > 2 * stored + SLACK:
        raise ModelError(
            f"{path / 'config.json'}: describes a model of {wanted / 1e6:,.0f} million parameters, and the weights "
            f"have {stored / 1e6:,.0f} million; take the configuration that belongs to them"
        )
