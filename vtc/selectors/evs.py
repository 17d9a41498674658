"""EVS: of a video, keep what changes from frame to frame (Efficient Video Sampling, arXiv 2510.14624).

Score of a token: 1 - cosine with the token at the same place one frame earlier, in the decoder's space. The first frame
comes before all others whatever the scores, and ties go to the earlier token. The authors' code never keeps less than
one frame; here a budget below that is spread evenly over the first frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from vtc.facts.model import ModelFacts
from vtc.recipe.selectors.evs import EVSEntry
from vtc.selectors.base import Selector, ascending, evenly, padding_last, top_k
from vtc.selectors.given import projected
from vtc.visual_tokens import VisualTokens

FIRST_FRAME = 4.0


class EVS(Selector[EVSEntry]):
    """Top-k of dissimilarity in time.

    Parameters
    ----------
    entry : EVSEntry
    frames : int
        How many frames the tokens belong to, in time order and with equally many tokens each.
    """

    def __init__(self, entry: EVSEntry, frames: int) -> None:
        super().__init__(entry)
        self.frames = frames

    @classmethod
    def build(cls, entry: EVSEntry, facts: ModelFacts, running: Sequence[int]) -> Self:
        return cls(entry, len(facts.layout.grids))

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        video = projected(tokens)
        size, left = divmod(video.shape[1], self.frames)
        if left:
            raise ValueError(f"{video.shape[1]} visual tokens are not {self.frames} frames of equal size")
        if keep < size:
            return evenly(video[:, :size], keep, None if tokens.padding is None else tokens.padding[:, :size])
        return ascending(top_k(padding_last(dissimilarity(video, size), tokens.padding), keep))


def dissimilarity(video: Tensor, size: int) -> Tensor:
    """1 - cosine of each token (B, N, E) with the one `size` tokens earlier, (B, N); above all for the first `size`."""
    unit = nn.functional.normalize(video.float(), dim=-1)
    change = 1 - (unit[:, size:] * unit[:, :-size]).sum(dim=-1)
    return torch.cat([torch.full_like(unit[:, :size, 0], FIRST_FRAME), change], dim=1)
