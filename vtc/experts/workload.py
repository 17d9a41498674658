"""What expert parallelism works on: layers of experts, tokens on their way, and where both live (PyTorch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.experts.placement import ExpertMap
from vtc.experts.statistics import Numbers


class ExpertLayer(NamedTuple):
    """Weights of E experts: `gate_up` (E, 2F, D), gate above up, and `down` (E, D, F)."""

    gate_up: Tensor
    down: Tensor

    def expert(self, index: int, tokens: Tensor) -> Tensor:
        """What an expert makes of tokens (N, D)."""
        gate, up = (tokens @ self.gate_up[index].T).chunk(2, dim=-1)
        made: Tensor = (torch.nn.functional.silu(gate) * up) @ self.down[index].T
        return made


@dataclass(frozen=True)
class Workload:
    """Tokens on their way through L layers of experts, each of which adds to the hidden state.

    Attributes
    ----------
    layers : sequence of ExpertLayer
    hidden : Tensor of shape (T, D), float32
    chosen : array of shape (L, T, k), int64
        Experts of each token.
    weight : Tensor of shape (L, T, k), float32
        Their weights.
    """

    layers: Sequence[ExpertLayer]
    hidden: Tensor
    chosen: Numbers
    weight: Tensor


class Case(NamedTuple):
    """A placement, and the home (T,) of each token under it."""

    placement: ExpertMap
    homes: Numbers


def run_alone(work: Workload) -> Tensor:
    """Output (T, D) of one process that has all experts."""
    hidden = work.hidden
    for layer, chosen, weight in zip(work.layers, torch.from_numpy(work.chosen), work.weight, strict=True):
        hidden = hidden + answer(layer, hidden, chosen, weight)
    return hidden


def answer(experts: ExpertLayer, tokens: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Sums (N, D) of the experts that tokens (N, D) want (N, k), -1 for none, times their weights (N, k)."""
    made = torch.zeros_like(tokens)
    for index in torch.bincount(wanted[wanted >= 0], minlength=1).nonzero().flatten().tolist():
        row, call = (wanted == index).nonzero(as_tuple=True)
        made.index_add_(0, row, experts.expert(index, tokens[row]) * weight[row, call, None])
    return made
