"""CLS attention: keep the patches that the encoder's own summary token looks at.

With one layer, the one whose output feeds the projector, this is FasterVLM (Zhang et al. 2024, arXiv 2412.01818);
averaged over several layers it is VTC-CLS (Wang et al. 2024, arXiv 2412.05819), whose sum ranks tokens alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.cls_attention import ClsAttentionEntry
from vtc.selectors.base import Scorer
from vtc.visual_tokens import VisualTokens


class CLSAttention(Scorer[ClsAttentionEntry]):
    """Score of patch i: attention of the CLS token to it, mean over heads and over the layers."""

    def score(self, tokens: VisualTokens) -> Tensor:
        rows = [self.read(tokens, name) for name in self.readings]
        return rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)
