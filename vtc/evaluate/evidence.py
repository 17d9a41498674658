"""Did the selector keep what the answer follows from? Tells "the selector lost it" from "the decoder failed"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.data.datasets import Item

Bools = NDArray[np.bool_]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Locator:
    """Where a model's kept visual tokens lie.

    Attributes
    ----------
    keep_indices : callable
        From n images and n questions to the places on the grid that are kept last, (n, K).
    grid : (int, int)
        Rows and columns of the original's visual tokens.
    size : (int, int)
        Rows and columns of pixels that the model sees.
    """

    keep_indices: Callable[[list[Image.Image], list[str]], NDArray[np.int64]]
    grid: tuple[int, int]
    size: tuple[int, int]


def box_patches(box: Box, grid: tuple[int, int], size: tuple[int, int]) -> Bools:
    """Patches whose centre lies in a box; for a box that holds no centre, the patch around the box's own.

    Parameters
    ----------
    box : (x0, y0, x1, y1)
        In pixels.
    grid, size : (int, int)
        Rows and columns of patches and of pixels.

    Returns
    -------
    array of shape (grid rows * grid columns,), bool
    """
    height, width = size[0] / grid[0], size[1] / grid[1]
    x0, y0, x1, y1 = box
    rows = (np.arange(grid[0]) + 0.5) * height
    columns = (np.arange(grid[1]) + 0.5) * width
    inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None, :]
    if not inside.any():
        row = min(max(int((y0 + y1) / 2 / height), 0), grid[0] - 1)
        column = min(max(int((x0 + x1) / 2 / width), 0), grid[1] - 1)
        inside[row, column] = True
    return inside.reshape(-1)


def item_evidence(item: Item, kept: Bools, locator: Locator) -> tuple[float, bool]:
    """Share of an item's evidence patches that is kept, and whether each of its boxes keeps one."""
    boxes = [box_patches(box, locator.grid, locator.size) for box in item.evidence]
    patches = np.any(boxes, axis=0)
    share = float((kept & patches).sum() / patches.sum())
    return share, all(bool((kept & box).any()) for box in boxes)


def measure_evidence(
    locator: Locator, items: Sequence[Item], lost: Bools, batch_size: int = 16
) -> dict[str, Any] | None:
    """How much of the evidence a model keeps.

    Parameters
    ----------
    locator : Locator
    items : sequence of n Item
        Only those with evidence, in an image of the size that the model sees, count.
    lost : array of shape (n,), bool
        Items that the original answers better.
    batch_size : int

    Returns
    -------
    dict or None
        ``recall``: share of the evidence's patches that is kept, mean over items; ``recall_of_random``: what
        a random choice would reach; ``seen``: share of items each of whose evidence boxes keeps a patch;
        ``n``; ``lost``: answers lost among those n, and ``lost_unseen``: the lost ones with a box that keeps
        no patch. None where no item counts.
    """
    shares: list[float] = []
    seen: list[bool] = []
    missed: list[bool] = []
    kept = np.zeros(locator.grid[0] * locator.grid[1], dtype=np.bool_)
    for start in range(0, len(items), batch_size):
        batch = zip(items[start : start + batch_size], lost[start : start + batch_size], strict=True)
        loaded = [(item, item.load(), gone) for item, gone in batch]
        usable = [entry for entry in loaded if _counts(entry[0], entry[1], locator)]
        if not usable:
            continue
        chosen = locator.keep_indices([image for _, image, _ in usable], [item.question for item, _, _ in usable])
        for (item, _, gone), indices in zip(usable, chosen, strict=True):
            kept = np.zeros_like(kept)
            kept[indices] = True
            share, all_seen = item_evidence(item, kept, locator)
            shares.append(share)
            seen.append(all_seen)
            missed.append(bool(gone))
    if not shares:
        return None
    return {
        "recall": float(np.mean(shares)),
        "recall_of_random": float(kept.mean()),
        "seen": float(np.mean(seen)),
        "n": len(shares),
        "lost": int(np.sum(missed)),
        "lost_unseen": int(np.sum(np.array(missed) & ~np.array(seen))),
    }


def _counts(item: Item, image: Image.Image, locator: Locator) -> bool:
    return bool(item.evidence) and (image.height, image.width) == locator.size
