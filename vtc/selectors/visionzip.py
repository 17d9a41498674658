"""VisionZip: dominant tokens by attention, and the rest summed up in a few contextual ones (arXiv 2412.04467).

Dominant tokens are those of the highest attention in the last layer that runs, whose output goes on. What is left, in
raster order, gives every s-th token as a target, s = max(1, left // contextual); each other one joins the target whose
key has the highest cosine with its own. A contextual token is the mean of a target and all that joined it. The original
keeps the CLS token as well; here it is never among the tokens. Without a CLS token, attention is that which all patches
pay (as EffiVLM-Bench does for SigLIP).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.visionzip import VisionZipEntry
from vtc.selectors.base import Merger, ascending, ascending_with, padding_last, top_k
from vtc.selectors.contextual import contextual_merge
from vtc.visual_tokens import VisualTokens, gather_tokens


class VisionZip(Merger[VisionZipEntry]):
    """Top-k by attention plus contextual tokens, each standing at the place of its target."""

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        contextual = min(max(round(keep * self.entry.contextual), 0), keep - 1)
        score = padding_last(self.read(tokens, "attention").float(), tokens.padding)
        dominant = ascending(top_k(score, keep - contextual))
        if not contextual:
            return dominant, gather_tokens(tokens.features, dominant)
        keys = self.read(tokens, "keys")
        targets, merged = contextual_merge(
            tokens.features, keys, dominant, contextual, self.entry.as_published, tokens.padding
        )
        features = torch.cat([gather_tokens(tokens.features, dominant), merged], dim=1)
        return ascending_with(torch.cat([dominant, targets], dim=1), features)
