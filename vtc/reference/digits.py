"""Handwritten digits for the renderer, with the writers of train and test kept apart.

The glyphs are the 1,797 images of ``sklearn.datasets.load_digits`` (8x8 pixels, 17 grey levels), the test
part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning
Repository, CC BY 4.0; scikit-learn distributes it under its BSD licence). Its 13 writers' forms lie one
after another in 14 blocks of about 130 samples; each begins with the digits 0 to 9 in order, usually three
times. ``writer_blocks`` finds those starts, so that a split by blocks is a split by writers. There is one
block more than there are writers, so the block between train and test belongs to
neither (it serves validation): a writer who filled two
neighbouring forms is then still on one side only. A copy travels in ``digits.npz``, so that rendering needs
numpy and pillow only.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGITS_FILE = Path(__file__).parent / "digits.npz"

#: Blocks of the file per split; the one between train and test serves to watch generalisation.
SPLIT_BLOCKS = {"train": range(10), "validation": range(10, 11), "test": range(11, 14)}


def writer_blocks(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """First index of every writer's block.

    Parameters
    ----------
    labels : array of shape (1797,)
        Digits in file order.

    Returns
    -------
    array of shape (blocks,)
        Positions of a run "0 1 .. 9" that come at least 100 samples after the block before.
    """
    run = np.arange(10)
    starts: list[int] = []
    for i in range(len(labels) - 9):
        if np.array_equal(labels[i : i + 10], run) and (not starts or i - starts[-1] >= 100):
            starts.append(i)
    return np.array(starts, dtype=np.int64)


@cache
def load_glyphs(split: str) -> tuple[NDArray[np.uint8], ...]:
    """Glyphs of one split, one array per digit.

    Parameters
    ----------
    split : {"train", "test"}
        Which writers.

    Returns
    -------
    tuple of 10 arrays of shape (samples, 8, 8)
        Ink in 0..255; entry ``d`` holds the samples of digit ``d``.
    """
    with np.load(DIGITS_FILE) as data:
        images, labels, blocks = data["images"], data["labels"], data["blocks"]
    mine = np.isin(blocks, SPLIT_BLOCKS[split])
    ink = (images.astype(np.float32) * (255.0 / 16.0)).round().astype(np.uint8)
    return tuple(ink[mine & (labels == digit)] for digit in range(10))


def build(path: Path = DIGITS_FILE) -> None:
    """Write ``digits.npz`` from scikit-learn (needed once, by maintainers)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    blocks = np.searchsorted(writer_blocks(labels), np.arange(len(labels)), side="right") - 1
    np.savez_compressed(
        path,
        images=bunch.images.astype(np.uint8),
        labels=labels.astype(np.uint8),
        blocks=blocks.astype(np.uint8),
    )


if __name__ == "__main__":
    build()
