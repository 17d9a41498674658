"""A matrix in 8 or 4 bits: whole numbers, or float8, with scales and without zero points.

Scales are above zero, which TensorRT asks for, but where a precision allows either sign. The numbers are worked out
here: ONNX Runtime's own quantiser knows no scales above zero for blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from exporters.precision import Stored
from exporters.precision.scales import CLIPS, WHOLE, Grid, block_of, block_scales

LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
LEAST = {"float16": 2.0**-20, "float32": 2.0**-100}
"""Smallest scale by its type, above zero in it."""
NUMBERS: dict[str, Any] = {"int8": np.int8, "int4": ml_dtypes.int4, "fp8": ml_dtypes.float8_e4m3fn}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Small:
    """A matrix in few bits.

    Attributes
    ----------
    numbers : array of shape (R, C)
        Of the type that is stored.
    scales : array
        Per output of shape (outputs,), per block of inputs of the matrix' rank, or a single one.
    axis : int
        Of outputs, or where there are blocks of inputs.
    block : int
        Inputs that share a scale; 0 without blocks.
    """

    numbers: NDArray[Any]
    scales: NDArray[Any]
    axis: int
    block: int = 0

    def values(self) -> Floats:
        """The matrix that it stands for, float32."""
        scales = self.scales.astype(np.float32)
        if self.block:
            scales = scales.repeat(self.block, axis=self.axis)
        elif scales.ndim:
            scales = np.expand_dims(scales, 1 - self.axis)
        return np.asarray(self.numbers.astype(np.float32) * scales)

    def turned(self) -> Small:
        """The same the other way round."""
        return Small(
            np.ascontiguousarray(self.numbers.T), np.ascontiguousarray(self.scales.T), 1 - self.axis, self.block
        )


def grid_of(
    stored: Stored, block: int, inputs: int, dtype: str, *, either_sign: bool = False, clips: Sequence[float] = CLIPS
) -> Grid | None:
    """What a weight with so many inputs is rounded to; None where they do not divide into blocks.

    Parameters
    ----------
    stored : {"int8", "int4", "fp8"}
    block : int
        Most inputs that share a scale; 0 for all.
    inputs : int
    dtype : str
        Of scales: ``float16`` or ``float32``.
    either_sign : bool
        Whether scales may be below zero; of 4 bits alone, whose lowest number counts.
    clips : sequence of float
    """
    size = block_of(inputs, block) if block else inputs
    if not size:
        return None
    signs = either_sign and stored == "int4"
    return Grid(size, LARGEST[stored], LEAST[dtype], getattr(torch, dtype), signs, tuple(clips))


def small(
    matrix: NDArray[Any],
    outputs: int,
    stored: Stored,
    block: int = 0,
    *,
    either_sign: bool = False,
    clips: Sequence[float] = WHOLE,
) -> Small | None:
    """A matrix of two axes in few bits; None where it cannot be, as its inputs do not divide into blocks.

    Parameters
    ----------
    matrix : array of shape (R, C)
    outputs : int
        Which axis the outputs are.
    stored : {"int8", "int4", "fp8"}
        fp8 has one scale for all, the others one for each output.
    block : int
        Most inputs that share a scale; 0 for all.
    either_sign, clips : as in :func:`grid_of`
        Of blocks.
    """
    inputs, dtype = 1 - outputs, matrix.dtype
    values = matrix.astype(np.float32)
    if block:
        grid = grid_of(stored, block, values.shape[inputs], dtype.name, either_sign=either_sign, clips=clips)
        if grid is None:
            return None
        rows = np.ascontiguousarray(np.moveaxis(values, outputs, 0))
        found = np.moveaxis(block_scales(torch.from_numpy(rows), grid).numpy(), 0, outputs)
        wide = found.repeat(grid.block, axis=inputs)
        numbers = np.rint(values / wide).clip(grid.lowest, grid.largest).astype(NUMBERS[stored])
        return Small(numbers, np.ascontiguousarray(found, dtype=dtype), inputs, grid.block)
    scale = _scale(np.abs(values).max(axis=None if stored == "fp8" else inputs), LARGEST[stored], dtype)
    wide = np.expand_dims(scale, inputs) if scale.ndim else scale
    return Small(_rounded(values, wide.astype(np.float32), stored), scale, outputs)


def input_scale(reached: float, stored: Stored) -> float:
    """Scale of a layer's input that reaches a magnitude; one that float16 holds."""
    return float(_scale(reached, LARGEST[stored], np.float16))


def _scale(reached: Any, largest: float, dtype: Any) -> NDArray[Any]:
    return np.asarray(np.maximum(np.asarray(reached) / largest, LEAST[np.dtype(dtype).name]), dtype=dtype)


def _rounded(values: Floats, scales: Floats, stored: Stored) -> NDArray[Any]:
    numbers = np.clip(values / scales, -LARGEST[stored], LARGEST[stored])
    return np.asarray((numbers if stored == "fp8" else np.rint(numbers)).astype(NUMBERS[stored]))
