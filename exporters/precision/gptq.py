"""Weights rounded so that what a layer gives on samples stays: GPTQ (Frantar et al. 2022, arXiv 2210.17323).

Inputs are rounded one after the other, and what rounding one of them changes in the layer's output is taken out by
those that are still to come, by the Hessian of the output's squared error, the products of inputs on samples.

Own code, for want of a kept library that gives what is stored here: whole numbers with scales above zero, the same for
the graph and for its PyTorch twin. ONNX Runtime's ``neural_compressor.weight_only.gptq`` gives rounded weights without
their numbers and scales, and wants inputs run through an ONNX graph; its ``MatMulNBitsQuantizer`` has HQQ and k-quants
with zero points only. NNCF 3.4 has GPTQ for OpenVINO's models only. None was measured here: what they give back, or
take, rules them out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exporters.precision.scales import Grid, block_scales
from vtc.errors import NumericError

LAZY = 128
"""Inputs after which the rest of the weights is brought up to date."""
DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to it."""
ROWS = 8192
"""Outputs that are rounded at once."""


def gptq(weight: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Round a weight to whole numbers.

    Parameters
    ----------
    weight : Tensor of shape (outputs, inputs), float32
    hessian : Tensor of shape (inputs, inputs), float32
        Sum over samples of x x^T of the layer's inputs x.
    grid : Grid

    Returns
    -------
    numbers : Tensor of shape (outputs, inputs), float32
        Whole.
    scales : Tensor of shape (outputs, inputs / block), float32
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0  # an input that is always zero may be rounded as it likes
    diagonal[dead] = 1.0
    order = diagonal.argsort(descending=True, stable=True)
    importance = diagonal.clone()
    diagonal += DAMPING * importance.mean()
    upper = _inverse_root(hessian[order][:, order])
    pieces = [weight[start : start + ROWS] for start in range(0, len(weight), ROWS)]
    parts = [_rounded(rows, importance, order, upper, grid) for rows in pieces]
    numbers, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return numbers, scales


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Squared error of a layer's output on samples, as a share of the output's square, without its bias.

    Parameters
    ----------
    weight, rounded : Tensors of shape (outputs, inputs)
    hessian : Tensor of shape (inputs, inputs)
    """
    off, whole = (float(((part @ hessian) * part).sum()) for part in (rounded - weight, weight))
    return max(off, 0.0) / whole if whole > 0 else 0.0


def _inverse_root(hessian: Tensor) -> Any:
    """The upper Cholesky factor of the inverse; of a Hessian that is damped enough to have one.

    Raises
    ------
    NumericError
        If it is not made of numbers.
    """
    if not hessian.isfinite().all():
        raise NumericError("a layer's inputs on the samples hold NaN or infinity; fetch the checkpoint again")
    while True:
        root, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
            if not failed:
                return upper
        hessian.diagonal().mul_(1.1)


def _rounded(weight: Tensor, importance: Tensor, order: Tensor, upper: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    scales = block_scales(weight, grid, importance)
    # Inputs come first from here on, so that each is one piece of memory.
    wide = scales.T.repeat_interleave(grid.block, dim=0)[order]
    left = weight.T[order]
    numbers = torch.empty_like(left)
    inputs = len(left)
    for start in range(0, inputs, LAZY):
        end = min(start + LAZY, inputs)
        errors = left.new_empty(end - start, left.shape[1])
        for place in range(start, end):
            number = (left[place] / wide[place]).round_().clamp_(grid.lowest, grid.largest)
            numbers[order[place]] = number
            error = left[place].addcmul(number, wide[place], value=-1).div_(upper[place, place])
            left[place + 1 : end].addr_(upper[place, place + 1 : end], error, alpha=-1)
            errors[place - start] = error
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return numbers.T.contiguous(), scales
