"""MMTok: keep the tokens that together cover the question and the whole image best.

MMTok (Dong et al. 2025, arXiv 2508.18264) asks for each text token and for each visual token how well some kept token
stands for it. Text rows are ``softmax over visual tokens of cos(t, v) / text_temperature`` in the decoder's space over
the number of text tokens; image rows are ``softmax of cos(c, c') / vision_temperature`` of the encoder's features over
N, times `alpha`. The sum over rows of the highest kept entry is maximised greedily.

The authors drop stop words from the question first; a graph has no word list, so here every text token counts. They
can also bar patches from being kept, which still have to be covered; here padding alone is barred, and need not be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.mmtok import MMTokEntry
from vtc.selectors.base import Selector, ascending, best, padding_last
from vtc.selectors.given import projected, text
from vtc.selectors.similarity import column_of, cosines
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import VisualTokens


class MMTok(Selector[MMTokEntry]):
    """Greedy maximum coverage of the text and of the image."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        question = text(tokens)
        image, features = projected(tokens), tokens.features
        asked = _text_rows(image, question.states, question.mask, self.entry.text_temperature)
        seen = torch.softmax(cosines(features) / self.entry.vision_temperature, dim=-1) / features.shape[1]
        if tokens.padding is not None:
            seen = seen * (~tokens.padding).float().unsqueeze(-1)  # nothing need stand for it
        cover = torch.cat([asked, seen * self.entry.alpha], dim=1)
        first = first_equal(torch.cat([features, image], dim=-1))
        return ascending(best_cover(cover, first, keep, tokens.padding))


def _text_rows(image: Tensor, text: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """How well each of N visual tokens stands for each of T text tokens: (B, T, N); padding counts nothing."""
    weights = mask.float() / mask.float().sum(dim=1, keepdim=True).clamp(min=1)
    return torch.softmax(cosines(text, image) / temperature, dim=-1) * weights.unsqueeze(-1)


def best_cover(cover: Tensor, first: Tensor, keep: int, padding: Tensor | None = None) -> Tensor:
    """Greedy choice of columns whose highest entries, summed over rows, are most.

    Parameters
    ----------
    cover : Tensor of shape (B, R, N)
        How well each of N tokens covers each of R things; not negative.
    first : Tensor of shape (B, N), int64
        Place of the first token that equals each.
    keep : int
    padding : Tensor of shape (B, N), bool, or None
        Tokens that come after all others.

    Returns
    -------
    Tensor of shape (B, keep), int64
        In the order of choice.
    """
    # Summed by a matrix product, which runtimes do several times faster than a reduction over this axis.
    each = torch.ones(1, 1, cover.shape[1], device=cover.device).expand(cover.shape[0], -1, -1)
    # What each token would add to what is covered: entries above the highest kept one.
    missing = cover
    gain = read_at(torch.matmul(each, missing), first)
    pick = best(padding_last(gain, padding, last=-0.5))
    picks = [pick]
    chosen, barred = torch.ones_like(gain[..., :1]), torch.zeros_like(gain)
    for _ in range(keep - 1):
        barred = barred.scatter(2, pick, chosen)
        missing = torch.relu(missing - column_of(missing, pick))
        # Nothing more is gained by a chosen token, which may tie with others.
        gain = padding_last(read_at(torch.matmul(each, missing), first), padding, last=-0.5)
        pick = best(gain - barred)
        picks.append(pick)
    return torch.cat(picks, dim=-1).squeeze(1)
