"""FEATHER: what the last text token looks at once positions are left out, and a share spread over the whole image.

Endo et al. 2024, arXiv 2412.13180. FastV's criterion, the last text token's attention in the layer before the cut,
favours tokens near the end of the image, since rotary positions make far keys count less; so queries and keys are
compared without them, the softmax running over the image's tokens alone, mean over heads. At an early cut the criterion
is still poor, and tokens at a uniform stride are kept besides. The paper cuts before layers 8 and 16 of 32, with
uniform tokens at the first cut only (`uniform: 0` at the second).

With m = round(keep * uniform), tokens (2i + 1) * K // (2m) of the K that are no padding, i < m, stay in any case, and
the best scored of the others fill the budget. The authors join the best scored to every third token of every third row,
however many come out; that ninth of all tokens is a third of the budget where a third is kept. Here they are spread
along raster order and not in two dimensions, since an image that was pruned before has no grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.decoder.feather import FeatherEntry
from vtc.selectors.base import ascending, evenly, kept_mask, padding_last, top_k
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens


class FEATHER(DecoderScorer[FeatherEntry]):
    """Top-k of the last text token's attention without rotary positions, beside evenly spread tokens."""

    def score(self, tokens: DecoderTokens) -> Tensor:
        image = kept_mask(tokens.visual, tokens.hidden.shape[1]).bool().unsqueeze(1)
        return self.attention_to_seen(tokens, tokens.queries[:, -1:], image, rope=False).squeeze(1)

    def select(self, tokens: DecoderTokens, keep: int) -> Tensor:
        score = self.score(tokens)
        count, spread = score.shape[1], round(keep * self.entry.uniform)
        # Attention is at most 1, so 2 puts a token before all that have no bonus.
        if tokens.padding is None or not spread:
            places = {(2 * i + 1) * count // (2 * spread) for i in range(spread)}
            bonus = torch.tensor([2.0 * (place in places) for place in range(count)], device=score.device)
        else:
            bonus = 2.0 * kept_mask(evenly(tokens.visual, spread, tokens.padding), count)
        return ascending(top_k(padding_last(score + bonus, tokens.padding), keep))
