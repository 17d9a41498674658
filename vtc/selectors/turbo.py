"""Turbo: token merging that spares what the CLS token looks at (arXiv 2407.11717).

As ToMe, with a pair's score = cosine - alpha * 30 * attention of the CLS token to the one that would be merged away.
The factor 30 is the authors' code's. A merged token's attention is the mean over what it stands for.
"""

from __future__ import annotations

from torch import Tensor

from vtc.selectors.base import Needs
from vtc.selectors.tome import ToMe
from vtc.visual_tokens import Reading, VisualTokens

ATTENTION_SCALE = 30.0


class Turbo(ToMe):
    """ToMe with importance.

    Parameters
    ----------
    layer : int
        Encoder layer (0-based) whose keys and CLS attention are read.
    alpha : float
        How much importance counts against similarity.
    """

    def __init__(self, layer: int, alpha: float = 1.0) -> None:
        super().__init__(layer)
        self.alpha = alpha

    @property
    def needs(self) -> Needs:
        return Needs(frozenset({Reading("keys", self.layer), Reading("cls_attention", self.layer)}))

    def importance(self, tokens: VisualTokens) -> Tensor:
        return self.alpha * ATTENTION_SCALE * tokens.read("cls_attention", self.layer).float()
