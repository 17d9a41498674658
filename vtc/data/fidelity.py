"""How far next-token distributions move, token by token, on the original's own answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtc.errors import ModelError
from vtc.inputs.generation import check_finite

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Two models' distributions before each token of one answer.

    Attributes
    ----------
    kld : array of shape (T,)
        KL divergence of the compressed model's distribution from the original's, in nats.
    same_top : array of shape (T,), bool
        Whether both rank the same token first.
    """

    kld: Floats
    same_top: NDArray[np.bool_]


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    """Logarithms of the softmax over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def divergence(original: NDArray[np.float32], compressed: NDArray[np.float32]) -> Divergence:
    """Compare logits before each token of one answer.

    The statistics that llama.cpp's perplexity tool made familiar: KL divergence of the original's
    distribution from the compressed model's, sum p log(p / q), and "same top p".

    Parameters
    ----------
    original, compressed : arrays of shape (T, vocabulary)

    Returns
    -------
    Divergence

    Raises
    ------
    ModelError
        If the shapes differ: the models do not share a vocabulary.
    NumericError
        If something is not a number: NaN would drop out of every comparison.
    """
    if original.shape != compressed.shape:
        raise ModelError(
            f"logits of shape {original.shape} and {compressed.shape} cannot be compared: "
            "the models do not share a vocabulary; validate against the checkpoint it was made from"
        )
    check_finite(original, "the original's logits")
    check_finite(compressed, "the compressed model's logits")
    p, q = log_softmax(original), log_softmax(compressed)
    kld = np.sum(np.exp(p) * (p - q), axis=-1)
    # Rounding may leave -1e-17 where the distributions are equal.
    return Divergence(np.maximum(kld, 0.0), original.argmax(axis=-1) == compressed.argmax(axis=-1))
