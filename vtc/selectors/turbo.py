"""Turbo: token merging that spares what the CLS token looks at (arXiv 2407.11717).

As ToMe, with a pair's score = cosine - alpha * 30 * attention of the CLS token to the one that would be merged away.
The factor 30 is the authors' code's. A merged token's attention is the mean over what it stands for.
"""

from __future__ import annotations

from torch import Tensor

from vtc.recipe.selectors.turbo import TurboEntry
from vtc.selectors.tome import PairMerger
from vtc.visual_tokens import VisualTokens

ATTENTION_SCALE = 30.0


class Turbo(PairMerger[TurboEntry]):
    """Bipartite matching by keys, less the importance of what would be merged away."""

    def importance(self, tokens: VisualTokens) -> Tensor:
        return self.entry.alpha * ATTENTION_SCALE * self.read(tokens, "attention").float()
