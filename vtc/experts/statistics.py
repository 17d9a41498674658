"""Who uses which expert: sums over tokens by decoder layer, modality and expert, and a sample of routes.

Sums of two runs over different data add up to those of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vtc.errors import InputError
from vtc.writing import write_whole

TEXT, VISUAL = 0, 1
MODALITIES = ("text", "visual")
"""What a token shows, in the order of the arrays."""
FORMAT = "vtc-expert-statistics-1"

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Routes:
    """Which experts some tokens chose.

    Attributes
    ----------
    chosen : array of shape (L, T, k), int64
        -1 where a token is not in that layer.
    modality : array of shape (T,), int64
        Index into `MODALITIES`.
    sample : array of shape (T,), int64
        Number of the prompt that a token is of.
    """

    chosen: Numbers
    modality: Numbers
    sample: Numbers


@dataclass(frozen=True)
class ExpertUse:
    """What L layers of E experts, of which a token passes k, did on some prompts.

    Where experts were merged, a token may choose the same one more than once, and counts as often.

    Attributes
    ----------
    tokens : array of shape (2,)
        Tokens of each modality.
    chosen : array of shape (L, 2, E)
        Tokens that chose an expert.
    weight : array of shape (L, 2, E)
        Sum of the router's weights over those tokens.
    norm, weighted_norm : arrays of shape (L, 2, E)
        Sum of the norm of the expert's output over them, and of weight times norm.
    together : array of shape (L, 2, E, E)
        Tokens that chose both of two experts; its diagonal is `chosen`.
    confidence : array of shape (L, 2)
        Sum of the router's largest probability.
    attention, gaussian : arrays of shape (L, 2, E)
        Choices weighted by a token's soft modality score, text and visual, in both forms of SMoES.
    routes : Routes
        Of the first tokens.
    """

    tokens: Floats
    chosen: Floats
    weight: Floats
    norm: Floats
    weighted_norm: Floats
    together: Floats
    confidence: Floats
    attention: Floats
    gaussian: Floats
    routes: Routes

    @property
    def layers(self) -> int:
        """Decoder layers, L."""
        return int(self.chosen.shape[0])

    @property
    def experts(self) -> int:
        """Experts of a layer, E."""
        return int(self.chosen.shape[2])

    @property
    def active(self) -> int:
        """Experts that a token passes, k."""
        return int(self.routes.chosen.shape[2])


@dataclass(frozen=True)
class ExpertStatistics:
    """Expert use of a model on some data.

    Attributes
    ----------
    model : str
        The checkpoint's digest.
    data : str
        What it was measured on, in words.
    prompts : int
        How many.
    uses : mapping of str to ExpertUse
        ``full`` with all visual tokens; ``pruned`` with those that a recipe keeps, where one was given.
    recipe : str
        That recipe's name, or empty.
    """

    model: str
    data: str
    prompts: int
    uses: Mapping[str, ExpertUse]
    recipe: str = ""

    def use(self, tokens: str = "full") -> ExpertUse:
        """Expert use with all visual tokens, or with those that are kept.

        Raises
        ------
        InputError
            If that was not measured.
        """
        if tokens not in self.uses:
            raise InputError(f"the statistics have no '{tokens}' tokens; they have {', '.join(self.uses)}")
        return self.uses[tokens]


SUMS = tuple(field.name for field in fields(ExpertUse) if field.name != "routes")
"""Attributes that are sums."""


def use_digest(use: ExpertUse) -> str:
    """SHA-256 of the sums and routes, which names what a placement or a choice of experts was made from."""
    hashed = hashlib.sha256()
    for key in SUMS:
        hashed.update(np.ascontiguousarray(getattr(use, key), "<f8").tobytes())
    for field in fields(Routes):
        hashed.update(np.ascontiguousarray(getattr(use.routes, field.name), "<i8").tobytes())
    return hashed.hexdigest()


def save_statistics(path: Path, statistics: ExpertStatistics) -> None:
    """Write statistics as safetensors, whole or not at all."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, use in statistics.uses.items():
        tensors |= {f"{name}.{key}": getattr(use, key) for key in SUMS}
        routes = use.routes
        tensors |= {
            f"{name}.routes.chosen": routes.chosen.astype(np.int16),
            f"{name}.routes.modality": routes.modality.astype(np.int8),
            f"{name}.routes.sample": routes.sample.astype(np.int32),
        }
    about = {"model": statistics.model, "data": statistics.data, "prompts": statistics.prompts}
    about |= {"recipe": statistics.recipe, "uses": list(statistics.uses)}
    plain = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    write_whole(path, save(plain, {FORMAT: json.dumps(about)}))


def load_statistics(path: Path) -> ExpertStatistics:
    """Read what :func:`save_statistics` wrote.

    Raises
    ------
    InputError
        If there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; vtc calibrate MODEL --experts -o {path} makes expert statistics")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[FORMAT])
            uses = {name: _use(name, file) for name in about["uses"]}
        return ExpertStatistics(about["model"], about["data"], about["prompts"], uses, about["recipe"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a file of expert statistics; vtc calibrate MODEL --experts makes one") from error


def _use(name: str, file: Any) -> ExpertUse:
    routes = Routes(
        *(file.get_tensor(f"{name}.routes.{key}").astype(np.int64) for key in ("chosen", "modality", "sample"))
    )
    return ExpertUse(**{key: file.get_tensor(f"{name}.{key}").astype(np.float64) for key in SUMS}, routes=routes)


def check_model(statistics: ExpertStatistics, digest: str, path: Path) -> None:
    """Make sure that statistics are of a model.

    Raises
    ------
    InputError
        If they are of another one.
    """
    if statistics.model != digest:
        raise InputError(
            f"{path}: expert statistics of model {statistics.model[:12]}, not of {digest[:12]}; measure "
            "them again with vtc calibrate MODEL --experts"
        )
