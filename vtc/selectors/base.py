"""The interface of a selector: which visual tokens of an image to keep.

The same module runs in PyTorch and is exported: exactly `keep` tokens leave it, whatever the image, through operators
with static shapes. Of equal candidates the lowest index wins. Options and what a method looks at are said once, in its
recipe entry (`vtc.recipe.selectors`); the module takes both from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Needs, Reading
from vtc.recipe.selectors.base import EncoderSelectorEntry
from vtc.visual_tokens import VisualTokens

E = TypeVar("E", bound=EncoderSelectorEntry)
NO_READINGS: Mapping[str, Reading] = MappingProxyType({})


class Selector(nn.Module, ABC, Generic[E]):
    """Picks `keep` of N visual tokens.

    Parameters
    ----------
    entry : EncoderSelectorEntry
        The method's options, and what it looks at.
    readings : mapping of str to Reading
        Values of encoder layers that it reads, under the names that the entry gives them.
    """

    def __init__(self, entry: E, readings: Mapping[str, Reading] = NO_READINGS) -> None:
        super().__init__()
        self.entry = entry
        self.readings = dict(readings)

    @classmethod
    def build(cls, entry: E, facts: ModelFacts, running: Sequence[int]) -> Self:
        """Make the selector for a model.

        Parameters
        ----------
        entry : EncoderSelectorEntry
        facts : ModelFacts
        running : sequence of int
            Encoder layers that run, ascending.
        """
        return cls(entry, entry.readings(facts, running))

    @property
    def needs(self) -> Needs:
        """What `select` looks at beyond the features and the grid."""
        return self.entry.needs(self.readings)

    def read(self, tokens: VisualTokens, name: str) -> Tensor:
        """What the encoder gave under one of the names of `readings`."""
        return tokens.readings[self.readings[name]]

    @abstractmethod
    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        """Positions of the tokens to keep among `tokens`: (B, keep), int64, ascending, unique within each image."""

    def prune(self, tokens: VisualTokens, keep: int) -> VisualTokens:
        """The `keep` tokens that go on."""
        return tokens.keep(self.select(tokens, keep))


class Scorer(Selector[E]):
    """A selector that is a score per token plus top-k."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of each token, (B, N), float; higher is kept."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        return ascending(top_k(padding_last(self.score(tokens), tokens.padding), keep))


class Merger(Selector[E]):
    """A selector whose kept tokens also take in what they stand for."""

    @abstractmethod
    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        """Choose and merge.

        Returns
        -------
        indices : Tensor of shape (B, keep), int64
            Places of the tokens that stay among `tokens`, ascending, unique within each image.
        features : Tensor of shape (B, keep, D)
            What they are now, in the space and type of `tokens.features`.
        """

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        return self.merge(tokens, keep)[0]

    def prune(self, tokens: VisualTokens, keep: int) -> VisualTokens:
        indices, features = self.merge(tokens, keep)
        # Whatever was projected before is no longer what these tokens are.
        return replace(tokens.keep(indices), features=features, projected=None)


LAST = -1e30
"""A score below every other one."""


def padding_last(score: Tensor, padding: Tensor | None, last: float = LAST) -> Tensor:
    """Scores (..., N) that put padding after everything else.

    Every selector ranks by scores that have been through here, so that padding fills a budget only where there are
    fewer other tokens.

    Parameters
    ----------
    score : Tensor of shape (B, N) or (B, 1, N)
    padding : Tensor of shape (B, N), bool, or None
        None where images get no padding; scores then stay as they are.
    last : float
        Score of padding. A greedy choice puts it between those of tokens that are left and of tokens that are taken.
    """
    if padding is None:
        return score
    return torch.where(padding if score.dim() == 2 else padding.unsqueeze(1), last, score)


def evenly(tokens: Tensor, keep: int, padding: Tensor | None) -> Tensor:
    """Tokens spread evenly over those that are no padding.

    Parameters
    ----------
    tokens : Tensor of shape (B, N, D)
        Whose number counts.
    keep : int
    padding : Tensor of shape (B, N), bool, or None

    Returns
    -------
    Tensor of shape (B, keep), int64
        Of the n tokens that are no padding, in raster order, those number ``floor((i + 1/2) n / keep)`` for
        i = 0 .. keep - 1. Padding follows where they are fewer than `keep`.
    """
    (batch, count), device = tokens.shape[:2], tokens.device
    if padding is None:
        spread = [(2 * i + 1) * count // (2 * keep) for i in range(keep)]
        return torch.tensor(spread, device=device).expand(batch, keep)
    order = top_k(-(torch.arange(count, device=device) + count * padding.float()), count)
    return ascending(torch.gather(order, 1, strides(padding, keep)))


def strides(padding: Tensor, keep: int) -> Tensor:
    """Numbers (B, keep) of :func:`evenly`, in an order that has padding (B, N) last."""
    odd = torch.arange(1, 2 * keep, 2, device=padding.device)
    real = (~padding).long().sum(dim=1, keepdim=True).clamp(min=keep)
    return torch.div(odd * real, 2 * keep, rounding_mode="floor")


def top_k(score: Tensor, keep: int) -> Tensor:
    """Indices (B, keep) of the highest scores (B, N), best first; of equal scores the lower index wins.

    ONNX defines TopK with that tie rule; PyTorch leaves ties open, so a stable sort stands in for it outside of an
    export.
    """
    if torch.compiler.is_exporting():
        return torch.topk(score, keep, dim=-1).indices
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :keep]


def best(score: Tensor) -> Tensor:
    """Index (B, 1) of the highest score (B, N); of equal scores the lower index.

    ONNX defines ArgMax with that tie rule; PyTorch leaves ties open.
    """
    if torch.compiler.is_exporting():
        return score.argmax(dim=-1, keepdim=True)
    places = torch.arange(score.shape[-1], device=score.device)
    highest = score == score.amax(dim=-1, keepdim=True)
    return torch.where(highest, places, score.shape[-1]).amin(dim=-1, keepdim=True)


def ascending(indices: Tensor) -> Tensor:
    """Indices (B, K) in raster order. Sorted as float32, which every runtime's TopK takes and which is exact here."""
    return torch.sort(indices.float(), dim=-1).values.long()


def kept_mask(indices: Tensor, count: int) -> Tensor:
    """Which of `count` tokens are among `indices` (B, K): (B, count), float32, 1 or 0."""
    blank = torch.zeros(indices.shape[0], count, device=indices.device)
    return blank.scatter(1, indices, 1.0)


def ascending_with(indices: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, K) in raster order, and features (B, K, D) brought along."""
    order = torch.sort(indices.float(), dim=-1).indices
    return torch.gather(indices, 1, order), torch.gather(features, 1, order.unsqueeze(-1).expand_as(features))
