"""SparseVLM: text tokens that concern the image rate it, and the best of what is dropped is recycled into a few tokens.

Zhang et al. 2024, arXiv 2410.04417, version 1 of its code. In the layer before the cut:

1. Relevance of text token t: softmax over the text of the products of visual and text states, mean over visual tokens.
   Raters are the tokens above the mean relevance; all of them, if none is.
2. Score of visual token v: attention of the raters to it, softmax over the whole row, mean over heads and raters.
3. Of the tokens dropped, the best scored share `recycle`, int(share * dropped) + 1 of them, are clustered into
   c = int(a tenth of them) + 1 tokens by density peaks (DPC-KNN), each the mean of its cluster.

Where this differs. The authors keep as many tokens as a table says, and add the c recycled ones after them; here the c
come out of the budget, at most half of it, and each stands at its cluster centre's place. They choose the raters once,
from the decoder's input; here each cut chooses them from the states that it looks at. They add random noise to the
densities, which decides wherever two tokens are nearest to one another and so equally dense; here the token with the
lower index among the equals, in order of score, counts as the denser one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.decoder.sparsevlm import SparseVLMEntry
from vtc.selectors.base import ascending_with, padding_last, top_k
from vtc.selectors.decoder.base import DecoderMerger, DecoderTokens, mean_over_queries
from vtc.selectors.density_peaks import cluster
from vtc.visual_tokens import gather_tokens

RECYCLED_PER_CLUSTER = 10


class SparseVLM(DecoderMerger[SparseVLMEntry]):
    """Tokens that the raters look at, and recycled ones."""

    def score(self, tokens: DecoderTokens) -> Tensor:
        """Attention that each visual token gets from the raters: (I, K), float32."""
        states = self.entering(tokens)
        weights = rater_weights(
            gather_tokens(states, tokens.visual), gather_tokens(states, tokens.queries), tokens.query_mask.float()
        )
        return mean_over_queries(self.attention(tokens, tokens.queries), weights)

    def merge(self, tokens: DecoderTokens, keep: int) -> tuple[Tensor, Tensor]:
        states = self.visual_states(tokens)
        clusters, candidates = recycling_budget(states.shape[1], keep, self.entry.recycle)
        chosen = keep - clusters
        ranked = top_k(padding_last(self.score(tokens), tokens.padding), chosen + candidates)
        kept = ranked[:, :chosen]
        if not clusters:
            return ascending_with(kept, gather_tokens(states, kept))
        dropped = ranked[:, chosen:]
        padding = None if tokens.padding is None else torch.gather(tokens.padding.long(), 1, dropped) > 0
        centres, merged = cluster(gather_tokens(states, dropped), clusters, neighbours=clusters, padding=padding)
        indices = torch.cat([kept, torch.gather(dropped, 1, centres)], dim=1)
        return ascending_with(indices, torch.cat([gather_tokens(states, kept), merged], dim=1))


def rater_weights(image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Which text tokens concern the image more than the average one does.

    Parameters
    ----------
    image : Tensor of shape (I, K, E)
    text : Tensor of shape (I, Q, E)
    mask : Tensor of shape (I, Q), float32
        0 is padding.

    Returns
    -------
    Tensor of shape (I, Q), float32
        1 for a rater, 0 for others; where none is above the mean, 1 for all that are no padding.
    """
    products = torch.matmul(image.float(), text.float().transpose(1, 2))
    products = torch.where(mask.unsqueeze(1) > 0, products, torch.finfo(torch.float32).min)
    relevance = torch.softmax(products, dim=-1).mean(dim=1)
    mean = (relevance * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    raters = mask * (relevance > mean).float()
    return torch.where(raters.sum(dim=1, keepdim=True) > 0, raters, mask)


def recycling_budget(total: int, keep: int, share: float) -> tuple[int, int]:
    """How many clusters fit into a budget beside what is kept, and how many dropped tokens they are made of.

    Kept by score are the most tokens whose recycled ones still fit, though never less than half of the budget.
    """

    def recycled(chosen: int) -> int:
        return min(int(share * (total - chosen)) + 1, total - chosen) if share else 0

    def clusters(chosen: int) -> int:
        return recycled(chosen) // RECYCLED_PER_CLUSTER + 1 if recycled(chosen) else 0

    half = keep - keep // 2
    chosen = next((count for count in range(keep, half, -1) if count + clusters(count) <= keep), half)
    return keep - chosen, recycled(chosen) if chosen < keep else 0
