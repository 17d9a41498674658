"""Files of placements: vtc's own, and those that servers of large models read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vtc.errors import InputError
from vtc.experts.placement import ExpertMap
from vtc.experts.statistics import Numbers
from vtc.files import read_json
from vtc.writing import write_whole

FORMAT = "vtc-expert-placement-1"
MAP = "physical_to_logical_map"
"""As SGLang and EPLB call it."""


def save_placement(path: Path, placement: ExpertMap) -> None:
    """Write a placement as JSON, whole or not at all."""
    _write(path, json.dumps(to_json(placement)))


def to_json(placement: ExpertMap) -> dict[str, Any]:
    """Plain JSON data of a placement: which expert each slot holds, and what it was made from."""
    about = {key: getattr(placement, key) for key in ("model", "statistics", "method", "experts", "devices")}
    return {"format": FORMAT} | about | {MAP: placement.expert_of_slot.tolist()}


def load_placement(path: Path) -> ExpertMap:
    """Read what :func:`save_placement` wrote.

    Raises
    ------
    InputError
        If there is no such file, it holds something else, or the placement leaves out an expert.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a placement of experts is made from expert statistics")
    try:
        about: dict[str, Any] = read_json(path)
        if about["format"] != FORMAT:
            raise ValueError("another format")
        slots = np.array(about[MAP])
        if slots.ndim != 2 or slots.dtype.kind != "i":
            raise ValueError("not a table of experts")
        texts = {key: str(about[key]) for key in ("model", "statistics", "method")}
        experts, devices = int(about["experts"]), int(about["devices"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a placement of experts ({FORMAT})") from error
    try:
        return ExpertMap(slots.astype(np.int64), experts, devices, **texts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def save_for_sglang(path: Path, placement: ExpertMap, decoder_layers: Sequence[int] | None = None) -> None:
    """Write what SGLang takes as ``--init-expert-location FILE.json``.

    SGLang passes every key on to a function, so that the file has this one key and no other. It also wants
    ``--ep-size`` equal to the devices, and ``--ep-num-redundant-experts`` equal to the copies.

    Parameters
    ----------
    path : Path
    placement : ExpertMap
    decoder_layers : sequence of int, optional
        Numbers of the decoder layers that have experts; all of them where none are given. SGLang has a row for every
        layer, and never reads those of others.
    """
    numbers = _numbers(placement, decoder_layers)
    rows = np.tile(np.arange(placement.slots) % placement.experts, (max(numbers) + 1, 1))
    rows[numbers] = placement.expert_of_slot
    _write(path, json.dumps({MAP: rows.tolist()}))


def save_for_tensorrt_llm(path: Path, placement: ExpertMap, decoder_layers: Sequence[int] | None = None) -> None:
    """Write what TensorRT-LLM takes as ``moe_config.load_balancer``, a file of YAML; parameters as for SGLang."""
    rows = dict(zip(_numbers(placement, decoder_layers), placement.expert_of_slot.tolist(), strict=True))
    about = {"num_slots": placement.slots, "initial_global_assignments": rows, "layer_updates_per_iter": 0}
    _write(path, yaml.safe_dump(about, default_flow_style=None, width=10**6, sort_keys=False))


def save_for_vllm(path: Path, placement: ExpertMap) -> None:
    """Write the bare list of vLLM's proposal ``eplb_config.initial_expert_map_path`` (vllm-project/vllm#49572).

    One list of experts by slot for each layer that has experts. Releases up to 0.32 read no such file; for those see
    :func:`expert_order`.
    """
    _write(path, json.dumps(placement.expert_of_slot.tolist()))


def expert_order(placement: ExpertMap) -> Numbers:
    """Order (L, E) in which to store experts, and rows of the router, for a server that takes no placement.

    vLLM gives each device the next E / devices experts of the checkpoint, so that a checkpoint in this order is
    placed as wanted. What the model computes is the same, up to the choice between router logits that are equal.

    Raises
    ------
    InputError
        If an expert has copies.
    """
    if placement.has_copies:
        raise InputError(
            f"{placement.slots - placement.experts} copies of experts cannot be put into an order; place without"
        )
    return placement.expert_of_slot


def _numbers(placement: ExpertMap, decoder_layers: Sequence[int] | None) -> list[int]:
    numbers = list(range(placement.layers) if decoder_layers is None else decoder_layers)
    if len(numbers) != placement.layers:
        raise InputError(f"a placement of {placement.layers} layers is not of decoder layers {numbers}")
    return numbers


def _write(path: Path, text: str) -> None:
    write_whole(path, f"{text}\n".encode())


WRITERS: dict[str, Callable[[Path, ExpertMap], None]] = {
    "vtc": save_placement,
    "sglang": save_for_sglang,
    "tensorrt-llm": save_for_tensorrt_llm,
    "vllm": save_for_vllm,
}
"""For whom a placement is written, to the function that does."""
