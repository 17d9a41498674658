"""A question-guided mixture of projectors, after QMoP (arXiv 2603.21232): resampler, pooling, pruning, and a router.

The authors' code and the paper's text were not to be had when this was written; its abstract says that a router looks
at image and question and weighs three branches. Everything else here is an assumption, and an option where it can be:

- each branch gives K tokens of the decoder's width, added with the router's weights (`mixture`: the two largest of
  them, or all);
- the resampler is one cross-attention of learned queries, the pooling the means of a grid, the pruning the K tokens
  that a linear layer rates highest, in raster order, each times the sigmoid of its rate, which gives the rate a
  gradient;
- the router is norm, linear, GELU, linear on one vector of the image and one of the question: the encoder's CLS token,
  or the mean of the tokens where it has none, and the mean of the question's input embeddings.

Tokens of the three are added place by place. Only those of the pooling stand on a grid.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.attention import attend
from vtc.projectors.base import Own, TrainedProjector
from vtc.recipe.needs import Needs, Reading
from vtc.recipe.projectors.qmop import BRANCHES
from vtc.resampling import pooling
from vtc.selectors.base import ascending, top_k
from vtc.visual_tokens import VisualTokens, gather_tokens

EPSILON = 1e-5
Mixture = Literal["top_2", "all"]


class Qmop(TrainedProjector):
    """Three branches, weighed for each image and question.

    Parameters
    ----------
    grid, keep_grid : (int, int)
    width, heads, out : int
        Values of a token of the encoder, heads of the resampler, and values of a token of the decoder.
    image, text, inner : int
        Values of the image's and of the question's vector, and of the router's inner layer.
    mixture : {"top_2", "all"}
        Whether the branch that the router rates lowest is left out.
    cls_layer : int or None
        The encoder layer whose entering CLS token is the image's vector; None takes the mean of the tokens.
    """

    def __init__(
        self,
        grid: Grid,
        keep_grid: Grid,
        width: int,
        heads: int,
        out: int,
        image: int,
        text: int,
        inner: int,
        mixture: Mixture = "top_2",
        cls_layer: int | None = None,
    ) -> None:
        super().__init__(grid, prod(keep_grid))
        self.heads, self.mixture, self.cls_layer = heads, mixture, cls_layer
        self.pooling = pooling(grid, keep_grid)
        self.query = nn.Parameter(0.02 * torch.randn(self.keep, width))
        self.pos = nn.Parameter(0.02 * torch.randn(prod(grid), width))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.score = nn.Linear(width, 1)
        self.proj_a, self.proj_b, self.proj_c = (nn.Linear(width, out) for _ in BRANCHES)
        self.norm_image, self.norm_text = nn.LayerNorm(image, eps=EPSILON), nn.LayerNorm(text, eps=EPSILON)
        self.router = nn.Sequential(nn.Linear(image + text, inner), nn.GELU(), nn.Linear(inner, len(BRANCHES)))

    @property
    def needs(self) -> Needs:
        readings = [] if self.cls_layer is None else [Reading("cls_state", self.cls_layer)]
        return Needs(frozenset(readings), text=True)

    def branches(self, features: Tensor) -> Tensor:
        """What each branch makes of the tokens, (branches, B, K, out)."""
        normed = self.norm(features)
        resampled: Tensor = self.proj_a(self._resampled(normed))
        pooled: Tensor = self.proj_b(self.pooling(features))
        pruned: Tensor = self.proj_c(self._pruned(features))
        return torch.stack([resampled, pooled, pruned])

    def weights(self, image: Tensor, question: Tensor) -> Tensor:
        """Of each branch, (B, branches), for vectors of images (B, image) and of questions (B, text)."""
        logits: Tensor = self.router(torch.cat([self.norm_image(image), self.norm_text(question)], dim=-1))
        if self.mixture == "all":
            return logits.softmax(dim=-1)
        # Of equal ones the first are taken.
        taken = torch.zeros_like(logits).scatter(1, top_k(logits, 2), 1.0)
        return torch.where(taken > 0, logits, -torch.inf).softmax(dim=-1)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        if tokens.text is None:
            raise AssertionError("the question is among its needs")
        features = tokens.features
        image = features.mean(dim=1)
        if self.cls_layer is not None:
            image = tokens.readings[Reading("cls_state", self.cls_layer)]
        weights = self.weights(image, tokens.text.mean.to(features))
        return (weights.transpose(0, 1)[..., None, None] * self.branches(features)).sum(dim=0)

    def _resampled(self, normed: Tensor) -> Tensor:
        seen = attend(self.wq(self.query), self.wk(normed + self.pos), self.wv(normed), self.heads)
        out: Tensor = self.wo(seen)
        return out

    def _pruned(self, features: Tensor) -> Tensor:
        rates: Tensor = self.score(features).squeeze(-1)
        chosen = ascending(top_k(rates, self.keep))
        gate = torch.gather(rates, 1, chosen).sigmoid()
        return gather_tokens(features, chosen) * gate.unsqueeze(-1)
