"""A checkpoint without the numbers of its weights: whether its files make one model, by headers and settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from vtc.errors import ModelError, one_line
from vtc.inputs.generation import FILE as GENERATION_FILE
from vtc.machine import machine_fault
from vtc.models.checkpoint_files import weight_files
from vtc.models.loading import without_progress_bars
from vtc.models.parameter_count import check_parameter_count

Shape = tuple[int, ...]
OF_ADAPTERS = (".lora_", "lora_embedding", ".base_layer.", ".modules_to_save.", ".ada_lora", "lora_magnitude")
"""Parts of names that weights have before an adapter is merged."""


def outline_model(path: Path, model_class: type[PreTrainedModel], config: Any) -> tuple[Any, list[str]]:
    """Build a model that holds no numbers, and make sure that the weights are those of it.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    model_class : type
    config : PretrainedConfig

    Returns
    -------
    model : PreTrainedModel
        On the device ``meta``, with the checkpoint's generation settings.
    unused : list of str
        Names of weights that it has no place for.

    Raises
    ------
    ModelError
        If no model can be built, or weights are missing or of other sizes.
    """
    stored = dict(_stored(path))
    without_progress_bars()
    build: Any = model_class.from_pretrained
    try:
        check_parameter_count(path, model_class, config, sum(tensor.numel() for tensor in stored.values()))
        model, report = build(
            None,
            config=config,
            state_dict=stored,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except Exception as error:
        raise machine_fault(error, path) or ModelError(
            f"{path / 'config.json'}: makes no model ({type(error).__name__}: {one_line(error)}); take the "
            "configuration that belongs to the weights"
        ) from error
    unused = sorted(report["unexpected_keys"])
    if fault := _fault(sorted(report["missing_keys"]), unused, sorted(report["mismatched_keys"])):
        raise ModelError(f"{path}: {fault}")
    model.generation_config = _generation(path)
    return model, unused


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and shape of every tensor in the weights' files."""
    for file in weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, torch.empty(tensors.get_slice(name).get_shape(), device="meta")


def _fault(missing: list[str], unused: list[str], others: list[tuple[str, Shape, Shape]]) -> str:
    adapted = next((name for name in unused if any(part in name for part in OF_ADAPTERS)), None)
    if adapted:
        return (
            f"weights hold parts of an adapter that is not merged ({adapted}); merge it "
            "(merge_and_unload() of peft) before the model is saved"
        )
    if missing and unused:
        return (
            f"weights lack {_some(missing)}, and hold {_some(unused)}, for which the model has no place; save them "
            "again by transformers (save_pretrained), or take the config.json that belongs to them"
        )
    if missing:
        return f"weights lack {_some(missing)}; fetch them again"
    for name, found, wanted in others:
        return (
            f"weights of {name} are {_size(found)}, and config.json makes them {_size(wanted)}; take the config.json "
            "that belongs to the weights"
        )
    return ""


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _generation(path: Path) -> GenerationConfig:
    """Generation settings from where transformers takes them: their own file, or else the configuration."""
    own = (path / GENERATION_FILE).exists()
    read: Any = GenerationConfig.from_pretrained
    elsewhere = {} if own else {"config_file_name": "config.json", "_from_model_config": True}
    try:
        settings: GenerationConfig = read(path, local_files_only=True, **elsewhere)
    except Exception as error:
        raise machine_fault(error, path) or ModelError(
            f"{path / (GENERATION_FILE if own else 'config.json')}: generation settings cannot be used "
            f"({one_line(error)}); correct or remove them"
        ) from error
    return settings
