"""CDPruner: keep tokens that are diverse among themselves, weighted by how relevant they are to the question.

CDPruner (Zhang et al. 2025, arXiv 2506.10967) chooses greedily the most probable subset under a determinantal point
process with the kernel ``r_i r_j cos(x_i, x_j)``: x are projected tokens, and r is the relevance, the mean similarity
of a token to the text, scaled to ``(r - min + 1e-6) / (max - min)``.

What differs from the authors' code:

- They compare CLIP's image and text embeddings and take the *negative* cosine. The models here carry no CLIP text
  tower, so relevance is the cosine between projected tokens and the text's input embeddings, padding left out.
- They scale over the whole batch; here an image does not change what is kept of another.
- Once the choice spans all that the tokens span, nothing new is left of any: their code divides by rounding noise and
  may return fewer tokens than asked. Here a ten-thousandth of each token's own weight always counts as left, so that
  relevance decides among the rest. Where all tokens are equally relevant, or there is no text, diversity alone decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.cdpruner import CDPrunerEntry
from vtc.selectors.base import Selector, ascending, best, padding_last
from vtc.selectors.given import projected, text
from vtc.selectors.similarity import column_of, cosines, row_of, unit, with_diagonal
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import VisualTokens

EPSILON = 1e-6
PADDED = -0.5  # Below what is left, above the -1 of what is chosen.
LEAST_LEFT = 1e-4  # Well above what rounding leaves of a token that others span.


class CDPruner(Selector[CDPrunerEntry]):
    """Greedy choice by a determinantal point process conditioned on the question."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        features, question = projected(tokens), text(tokens)
        similarity = mean_cosine(features, question.states, question.mask)
        signed = similarity if self.entry.relevance == "cosine" else -similarity
        relevance = scaled(signed, whole_batch=self.entry.as_published)
        return ascending(most_probable(features, relevance, keep, tokens.padding))


def mean_cosine(image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Mean over text tokens of the cosine of each visual token to them; 0 without text.

    Parameters
    ----------
    image : Tensor of shape (B, N, E)
    text : Tensor of shape (B, T, E)
    mask : Tensor of shape (B, T)
        0 for padding.

    Returns
    -------
    Tensor of shape (B, N), float32
    """
    weights = mask.float() / mask.float().sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.matmul(weights.unsqueeze(1), unit(text))
    return read_at(torch.matmul(unit(image), mean.transpose(1, 2)).squeeze(-1), first_equal(image))


def scaled(relevance: Tensor, whole_batch: bool = False) -> Tensor:
    """Relevance (B, N) between almost 0 and 1, per image or over all images; all 1 where it is the same everywhere."""
    low, high = relevance.amin(dim=-1, keepdim=True), relevance.amax(dim=-1, keepdim=True)
    if whole_batch:
        low, high = low.amin(dim=0, keepdim=True), high.amax(dim=0, keepdim=True)
    return (relevance - low + EPSILON) / (high - low).clamp(min=EPSILON)


def most_probable(features: Tensor, relevance: Tensor, keep: int, padding: Tensor | None = None) -> Tensor:
    """Greedy maximum of the determinant of the kept part of the kernel, by a Cholesky factor that grows a row a step.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    relevance : Tensor of shape (B, N)
        Positive.
    keep : int
    padding : Tensor of shape (B, N), bool, or None
        Tokens that come after all others.

    Returns
    -------
    Tensor of shape (B, keep), int64
        In the order of choice.
    """
    weight = relevance.float().unsqueeze(1)
    # 1, or 0 for zeros: rounding must not rank.
    length = unit(features).square().sum(dim=-1).round().unsqueeze(1)
    kernel = with_diagonal(cosines(features), length) * weight * weight.transpose(1, 2)
    first = first_equal(torch.cat([features, relevance.unsqueeze(-1)], dim=-1))
    least = weight.square() * LEAST_LEFT
    chosen = torch.full_like(least[..., :1], -1.0)
    # What of a token's own weight the chosen ones do not span.
    left = padding_last(torch.maximum(length * weight.square(), least), padding, last=PADDED)
    floor = padding_last(least, padding, last=PADDED)
    pick = best(left)
    picks = [pick]
    factor: Tensor | None = None
    for _ in range(keep - 1):
        row = row_of(kernel, pick)
        if factor is not None:
            row = row - read_at(torch.matmul(column_of(factor, pick).transpose(1, 2), factor), first)
        pivot = left.amax(dim=-1, keepdim=True)
        # Once padding is taken, nothing else is left that its row could rank.
        row = row / (pivot if padding is None else pivot.clamp(min=EPSILON)).sqrt()
        factor = row if factor is None else torch.cat([factor, row], dim=1)
        # Nothing is left of the pick itself, so it falls to its floor, from which nothing rises.
        floor = floor.scatter(2, pick, chosen)
        unspanned = left - row.square()
        left = torch.where(unspanned > least, unspanned, floor)
        pick = best(left)
        picks.append(pick)
    return torch.cat(picks, dim=-1).squeeze(1)
