"""A matrix in 8 or 4 bits: whole numbers, or float8, with scales above zero and without zero points.

That is what TensorRT asks for. The numbers are worked out here: ONNX Runtime's own quantiser gives blocks scales of
either sign, which TensorRT's parser refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporters.precision import Stored

BLOCKS = (128, 64, 32, 16)
"""Inputs that share a scale: the first that divides their number. GPUs have kernels for 128."""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a block's largest weight that may become the largest number; the one with the least squared error does."""
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


def small(
    matrix: NDArray[Any], outputs: int, stored: Stored, block: int = 0, clips: Sequence[float] = CLIPS
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
    clips : sequence of float
        Tried for scales of blocks.
    """
    inputs, dtype = 1 - outputs, matrix.dtype
    values = matrix.astype(np.float32)
    largest = LARGEST[stored]
    if block:
        block = block_of(values.shape[inputs], block)
        if not block:
            return None
        blocks = np.moveaxis(values, inputs, 0)
        blocks = blocks.reshape(-1, block, blocks.shape[1])
        scales = np.moveaxis(_clipped(blocks, largest, dtype, clips), inputs, 0)
        numbers = _rounded(values, scales.astype(np.float32).repeat(block, axis=inputs), stored)
        return Small(numbers, scales, inputs, block)
    scale = _scale(np.abs(values).max(axis=None if stored == "fp8" else inputs), largest, dtype)
    wide = np.expand_dims(scale, inputs) if scale.ndim else scale
    return Small(_rounded(values, wide.astype(np.float32), stored), scale, outputs)


def block_of(inputs: int, most: int) -> int:
    """The largest of :data:`BLOCKS` up to `most` that divides a number of inputs; 0 where none does."""
    return next((size for size in BLOCKS if size <= most and inputs % size == 0), 0)


def input_scale(reached: float, stored: Stored) -> float:
    """Scale of a layer's input that reaches a magnitude; one that float16 holds."""
    return float(_scale(reached, LARGEST[stored], np.float16))


def _scale(reached: Any, largest: float, dtype: Any) -> NDArray[Any]:
    return np.asarray(np.maximum(np.asarray(reached) / largest, LEAST[np.dtype(dtype).name]), dtype=dtype)


def _rounded(values: Floats, scales: Floats, stored: Stored) -> NDArray[Any]:
    numbers = np.clip(values / scales, -LARGEST[stored], LARGEST[stored])
    return np.asarray((numbers if stored == "fp8" else np.rint(numbers)).astype(NUMBERS[stored]))


def _clipped(blocks: Floats, largest: float, dtype: Any, clips: Sequence[float]) -> NDArray[Any]:
    """Scales (blocks, outputs) of blocks (blocks, inputs, outputs) with the least squared error."""
    reached = np.abs(blocks).max(axis=1)
    best = np.full(reached.shape, np.inf, np.float32)
    chosen = _scale(reached, largest, dtype)
    for clip in clips:
        scales = _scale(reached * clip, largest, dtype)
        wide = scales.astype(np.float32)[:, None]
        error = ((np.clip(np.rint(blocks / wide), -largest, largest) * wide - blocks) ** 2).sum(axis=1)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, scales, chosen)
    return np.asarray(chosen)
