"""CLS attention: keep the patches that the encoder's own summary token looks at.

With one layer, the one whose output feeds the projector, this is FasterVLM (Zhang et al. 2024, arXiv 2412.01818);
averaged over several layers it is VTC-CLS (Wang et al. 2024, arXiv 2412.05819), whose sum ranks tokens alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.selectors.base import Needs, Scorer
from vtc.visual_tokens import Reading, VisualTokens


class CLSAttention(Scorer):
    """Score of patch i: attention of the CLS token to it, mean over heads and over `layers` (0-based)."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    @property
    def needs(self) -> Needs:
        return Needs(frozenset(Reading("cls_attention", layer) for layer in self.layers))

    def score(self, tokens: VisualTokens) -> Tensor:
        rows = [tokens.read("cls_attention", layer) for layer in self.layers]
        return rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)
