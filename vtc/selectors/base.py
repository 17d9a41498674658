"""The interface of a selector: which visual tokens of an image to keep.

The same module runs in PyTorch and is exported: exactly `keep` indices leave it, whatever the image, through
operators with static shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtc.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Needs:
    """What a selector reads, so that only that is computed.

    Attributes
    ----------
    cls_attention : frozenset of int
        Encoder layers (0-based) whose CLS attention row is wanted.
    """

    cls_attention: frozenset[int] = frozenset()


class Selector(nn.Module, ABC):
    """Picks `keep` of N visual tokens."""

    @property
    def needs(self) -> Needs:
        """What `select` will look at beyond the features and the grid."""
        return Needs()

    @abstractmethod
    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        """Positions of the tokens to keep among `tokens`: (B, keep), int64, ascending, unique within each image."""


class Scorer(Selector):
    """A selector that is a score per token plus top-k; of equal scores the lower index wins."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of each token, (B, N), float; higher is kept."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        return ascending(top_k(self.score(tokens), keep))


def top_k(score: Tensor, keep: int) -> Tensor:
    """Indices (B, keep) of the highest scores (B, N), best first; of equal scores the lower index wins.

    ONNX defines TopK with that tie rule; PyTorch leaves ties open, so a stable sort stands in for it outside of an
    export.
    """
    if torch.compiler.is_exporting():
        return torch.topk(score, keep, dim=-1).indices
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[:, :keep]


def ascending(indices: Tensor) -> Tensor:
    """Indices (B, K) in raster order. Sorted as float32, which every runtime's TopK takes and which is exact here."""
    return torch.sort(indices.float(), dim=-1).values.long()
