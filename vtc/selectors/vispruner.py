"""VisPruner: keep what the CLS token attends to, and of the rest what is least duplicated.

VisPruner (Zhang et al. 2025, arXiv 2412.01818, which began as FasterVLM) spends ``int(keep * important)`` of the budget
on the patches of highest CLS attention in the layer whose output feeds the projector. The rest, listed by falling
attention, is thinned round by round: tokens at even places are compared with those at odd places by cosine of their
features, and up to eight even ones with the highest similarity to any odd one go, until the budget is met. What is left
of the even ones, most similar first, followed by the odd ones is the list of the next round.

Which tokens stay hangs on the order of the list, so a near tie can change many of them. Where the authors' code stops
with an error, because fewer than eight pairs are left or the list is odd, here a round drops at most one of each pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.vispruner import VisPrunerEntry
from vtc.selectors.base import Selector, ascending, kept_mask, padding_last, top_k
from vtc.selectors.similarity import cosines
from vtc.selectors.ties import read_at
from vtc.visual_tokens import VisualTokens, gather_tokens

ROUND = 8
TAKEN = 2.0  # Above all attention.


class VisPruner(Selector[VisPrunerEntry]):
    """Important tokens by CLS attention, diverse ones by removing duplicates."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        attention = padding_last(self.read(tokens, "attention").float(), tokens.padding)
        order = top_k(attention, attention.shape[-1])
        important = int(keep * self.entry.important)
        if important == keep:
            return ascending(order[:, :keep])
        diverse = _least_duplicated(cosines(tokens.features), order[:, important:], keep - important)
        chosen = torch.cat([order[:, :important], diverse], dim=1)
        if tokens.padding is not None:
            # Rounds may leave padding on the list; what comes next by attention takes its place.
            kept = kept_mask(chosen, attention.shape[-1])
            chosen = top_k(padding_last(attention + kept * TAKEN, tokens.padding), keep)
        return ascending(chosen)


def _least_duplicated(similarity: Tensor, listed: Tensor, keep: int) -> Tensor:
    """Thin a list of tokens.

    Parameters
    ----------
    similarity : Tensor of shape (B, N, N)
        Cosines of all tokens.
    listed : Tensor of shape (B, R), int64
        Which of them are on the list, in its order.
    keep : int
        How many of the R stay; at least 1.

    Returns
    -------
    Tensor of shape (B, keep), int64
    """
    while (length := listed.shape[1]) > keep:
        dropped = min(ROUND, length // 2, length - keep)
        even, odd = listed[:, ::2], listed[:, 1::2]
        duplicated = read_at(gather_tokens(similarity, even), odd).amax(dim=-1)
        stay = top_k(duplicated, duplicated.shape[1])[:, dropped:]
        listed = torch.cat([torch.gather(even, 1, stay), odd], dim=1)
    return listed
