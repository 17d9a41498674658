"""Encoder features with even spread: raw, they lie mostly in a few directions, and a network learns little else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

FLOOR = 0.01
"""Variance, as a share of the mean, below which a direction is not blown up any further."""


@dataclass(frozen=True)
class Whitening:
    """``(x - mean) @ matrix`` has nearly unit covariance.

    Attributes
    ----------
    mean : Tensor of shape (D,)
    matrix : Tensor of shape (D, D), symmetric
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Fit to features (..., D)."""
        flat = features.flatten(0, -2).double()
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        scale = (values.clamp_min(0) + FLOOR * values.mean()).rsqrt()
        return cls(flat.mean(0).float(), (vectors * scale @ vectors.T).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Whitened features, of the same shape."""
        return (features.float() - self.mean) @ self.matrix

    def fold(self, linear: nn.Linear) -> None:
        """Make a layer apply to raw features what it applied to whitened ones, in place."""
        with torch.no_grad():
            weight = linear.weight.double() @ self.matrix.double().T
            linear.bias.copy_(linear.bias.double() - weight @ self.mean.double())
            linear.weight.copy_(weight)
