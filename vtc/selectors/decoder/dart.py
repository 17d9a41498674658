"""DART: keep the visual tokens that duplicate a few pivots least (Wen et al. 2025, arXiv 2502.11494).

Pivots are the visual and the text tokens whose keys in the layer before the cut have the largest L1 norm. Image pivots
stay; then every pivot in turn takes its share of the rest of the budget, of the tokens not yet taken those of lowest
cosine to it, by the states that enter the layer after the cut, put through the decoder's final norm. The paper cuts
before layer 2.

Where this differs. The authors' shares are all of the same size, so that up to 7 tokens more or fewer come out than
asked for; here the first pivots take what division leaves over. Their pivots take turns in the order of a Python set,
which changes the choice; here image pivots come first, then text, each by norm. A prompt with fewer text tokens than
text pivots lets the first image pivot (text pivot, if there are no image pivots) take the missing turns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.recipe.selectors.decoder.dart import DARTEntry
from vtc.selectors.base import ascending, kept_mask, padding_last, top_k
from vtc.selectors.decoder.base import DecoderSelector, DecoderTokens
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import gather_tokens

SET_TABLE = 32
"""Slots of CPython's hash table for a set of 8 integers, each hashed to itself."""


class DART(DecoderSelector[DARTEntry]):
    """Pivots, and for each the tokens least similar to it."""

    def select(self, tokens: DecoderTokens, keep: int) -> Tensor:
        norm = self.keys(tokens).float().abs().sum(dim=(2, 3))
        own = padding_last(torch.gather(norm, 1, tokens.visual), tokens.padding)
        image_pivots = top_k(own, min(self.entry.pivots_image, keep))
        left = keep - image_pivots.shape[1]
        if not left:
            return ascending(image_pivots)
        pivots = torch.cat([torch.gather(tokens.visual, 1, image_pivots), self._text_pivots(tokens, norm)], dim=1)
        pivots = torch.where(pivots < 0, pivots[:, :1], pivots)
        if self.entry.as_published:
            padding = (1 - tokens.attention_mask).sum(dim=1, keepdim=True)
            slot = (pivots - padding) % SET_TABLE
            pivots = torch.gather(pivots, 1, top_k(-slot.float(), pivots.shape[1]))
        unit = [
            nn.functional.normalize(self.adapter.final_norm(gather_tokens(tokens.hidden, places)).float(), dim=-1)
            for places in (pivots, tokens.visual)
        ]
        similarity = torch.matmul(unit[0], unit[1].transpose(1, 2))
        similarity = read_at(similarity, first_equal(self.visual_states(tokens)))
        # Padding is taken after all others: their cosines are at most 1.
        chosen = take_turns(padding_last(similarity, tokens.padding, last=2.0), image_pivots, left)
        return ascending(chosen)

    def _text_pivots(self, tokens: DecoderTokens, norm: Tensor) -> Tensor:
        """Places (I, pivots_text) of the text pivots in their rows; -1 for those that are missing."""
        asking = torch.where(tokens.query_mask > 0, torch.gather(norm, 1, tokens.queries), -1.0)
        missing = asking.new_full((asking.shape[0], self.entry.pivots_text), -1.0)
        pivots = top_k(torch.cat([asking, missing], dim=1), self.entry.pivots_text)
        places = torch.cat([torch.where(tokens.query_mask > 0, tokens.queries, -1), missing.long()], dim=1)
        return torch.gather(places, 1, pivots)


def take_turns(similarity: Tensor, pivots: Tensor, count: int) -> Tensor:
    """Let each pivot take the tokens least similar to it, of those that are left.

    Parameters
    ----------
    similarity : Tensor of shape (I, P, K)
        Cosine of every pivot, in the order of their turns, to every visual token; 2 puts a token last.
    pivots : Tensor of shape (I, p), int64
        Visual tokens that are taken before.
    count : int
        Tokens to take; the first pivots take one more where it cannot be divided by P.

    Returns
    -------
    Tensor of shape (I, p + count), int64
    """
    turns = similarity.shape[1]
    chosen = [pivots]
    gone = kept_mask(pivots, similarity.shape[2])
    for turn in range(min(turns, count)):
        # Cosines are from -1 to 1 and padding has 2, so 4 puts a taken token after all others.
        cost = similarity[:, turn] + 4.0 * gone
        pick = top_k(-cost, count // turns + (turn < count % turns))
        gone = gone.scatter(1, pick, 1.0)
        chosen.append(pick)
    return torch.cat(chosen, dim=1)
