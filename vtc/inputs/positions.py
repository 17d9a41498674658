"""Rotary positions of text and visual tokens. numpy only: the PyTorch model and the torch-free runtime share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

MAX_STEP = 10**6
"""Largest time from one grid to the next."""


@dataclass(frozen=True)
class Positions:
    """Rotary positions of a batch of prompts.

    Attributes
    ----------
    ids : array of shape (B, S), or (3, B, S)
        Position of every token, or its time, row and column; 0 on padding.
    following : array of shape (B,)
        Position of the first generated token of each row.
    """

    ids: IntArray
    following: IntArray


@dataclass(frozen=True)
class PositionRule:
    """What the decoder is told of where visual tokens stand.

    Attributes
    ----------
    kind : {"renumber", "original"}
        Whether kept tokens are numbered through or have the positions that they had among all.
    span : int
        With ``original``, positions that an image takes: the text after it goes on that much later.
    grids : tuple of (int, int)
        Where a position is time, row and column (M-RoPE, Wang et al. 2024, arXiv 2409.12191): the grids that the places
        of tokens count, each later than the one before; else empty.
    time_step : float
        Time from one grid to the next; rounded down.
    """

    kind: Literal["renumber", "original"] = "renumber"
    span: int = 0
    grids: tuple[tuple[int, int], ...] = ()
    time_step: float = 1.0

    def __post_init__(self) -> None:
        """Refuse positions that no token has."""
        if self.span < 0 or not 0 <= self.time_step <= MAX_STEP or any(min(grid) < 1 for grid in self.grids):
            raise ValueError("positions of no token")

    @property
    def axes(self) -> int:
        """Numbers that make up a position."""
        return 3 if self.grids else 1

    @property
    def reach(self) -> int:
        """Where a position is time, row and column: the largest of an image, relative to where it begins."""
        return max(int((len(self.grids) - 1) * self.time_step), *(max(grid) - 1 for grid in self.grids))

    def offsets(self, keep_indices: IntArray) -> IntArray:
        """Positions (images, K, axes) of kept tokens relative to where their image begins."""
        if self.kind == "renumber":
            return np.broadcast_to(np.arange(keep_indices.shape[1]), keep_indices.shape)[..., None]
        if not self.grids:
            return keep_indices[..., None]
        coordinates = [
            (int(number * self.time_step), row, column)
            for number, (rows, columns) in enumerate(self.grids)
            for row in range(rows)
            for column in range(columns)
        ]
        return np.asarray(coordinates, dtype=np.int64)[keep_indices]


def positions(
    input_ids: IntArray, attention_mask: IntArray, image_token_id: int, keep_indices: IntArray, rule: PositionRule
) -> Positions:
    """Positions of text and visual tokens.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded prompts in which each image takes K placeholders.
    image_token_id : int
    keep_indices : array of shape (images, K)
        Ascending places of the kept tokens among all, images in prompt order over the whole batch.
    rule : PositionRule

    Returns
    -------
    Positions
    """
    keep = keep_indices.shape[1] if keep_indices.size else 1
    span = keep if rule.kind == "renumber" else rule.span
    real = attention_mask.astype(bool)
    visual = (input_ids == image_token_id) & real
    text = real & ~visual
    visual_before = np.cumsum(visual, axis=1) - visual
    begins = np.cumsum(text, axis=1) - text + span * (visual_before // keep)
    ids = np.stack([begins] * rule.axes).astype(np.int64)
    if keep_indices.size:
        ids[:, visual] += rule.offsets(keep_indices).reshape(-1, rule.axes).T
    ids[:, ~real] = 0
    following = text.sum(axis=1) + span * (visual.sum(axis=1) // keep)
    if rule.grids:
        # The time of a long clip may be beyond the text after it, also where its last tokens are not kept.
        return Positions(ids, np.where(visual, begins + rule.reach, ids[0]).max(axis=1) + 1)
    return Positions(ids[0], following.astype(np.int64))
