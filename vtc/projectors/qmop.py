"""A question-guided mixture of projectors, after QMoP (arXiv 2603.21232): resampler, pooling, pruning, and a router.

The authors' code and the paper's text were not to be had when this was written; its abstract says that a router looks
at image and question and weighs three branches. Everything else here is an assumption, and an option where it can be:

- each branch (`branches` chooses among them) gives K tokens of the decoder's width, added with the router's weights
  (`mixture`: the two largest of them, or all);
- what takes a branch's tokens to the decoder is LLaVA's two layers, or one (`projection`);
- the resampler is one cross-attention of learned queries, the pooling the means of a grid, the pruning the K tokens
  that a linear layer rates highest, in raster order, each times the sigmoid of its rate, which gives the rate a
  gradient;
- the router is norm, linear, GELU, linear on one vector of the image and one of the question: the encoder's CLS token,
  or the mean of the tokens where it has none, and the mean of the question's input embeddings.

Tokens of the three are added place by place. Only those of the pooling stand on a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.attention import attend
from vtc.projectors.base import Own, TrainedProjector, two_layers
from vtc.recipe.needs import NOTHING, Needs, Reading
from vtc.recipe.projectors.qmop import BRANCHES, Branch
from vtc.resampling import pooling
from vtc.selectors.base import ascending, top_k
from vtc.visual_tokens import VisualTokens, gather_tokens, in_grids

EPSILON = 1e-5
Mixture = Literal["top_2", "all"]


class Qmop(TrainedProjector):
    """Up to three branches, weighed for each image and question.

    Parameters
    ----------
    grid, keep_grid : (int, int)
    width, heads, out : int
        Values of a token of the encoder, heads of the resampler, and values of a token of the decoder.
    image, text, inner : int
        Values of the image's and of the question's vector, and of the router's inner layer; `text` is 0 for a router
        that reads no question.
    mixture : {"top_2", "all"}
        Whether the branch that the router rates lowest is left out, where there are three.
    cls_layer : int or None
        The encoder layer whose entering CLS token is the image's vector; None takes the mean of the tokens.
    branches : sequence of str
        One alone has no router.
    linear : bool
        Whether one layer takes a branch's tokens to the decoder, in place of LLaVA's two.
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
        branches: Sequence[Branch] = BRANCHES,
        linear: bool = False,
    ) -> None:
        super().__init__(grid, prod(keep_grid))
        self.mixture, self.cls_layer = mixture, cls_layer
        self.text, self.equal, self.balance = text, False, 0.0
        self.rated: Tensor | None = None
        kinds: dict[Branch, Callable[[], nn.Module]] = {
            "resampler": lambda: LearnedQueries(grid, self.keep, width, heads),
            "pooling": lambda: pooling(grid, keep_grid),
            "pruning": lambda: GatedPruning(self.keep, width),
        }
        self.branches = nn.ModuleDict({branch: kinds[branch]() for branch in branches})
        self.projections = nn.ModuleDict(
            {branch: nn.Linear(width, out) if linear else two_layers(width, out, out) for branch in branches}
        )
        if len(branches) > 1:
            self.norm_image = nn.LayerNorm(image, eps=EPSILON)
            self.norm_text = nn.LayerNorm(text, eps=EPSILON) if text else None
            self.router = nn.Sequential(nn.Linear(image + text, inner), nn.GELU(), nn.Linear(inner, len(branches)))

    @property
    def routed(self) -> bool:
        """Whether there are branches to weigh."""
        return len(self.branches) > 1

    @property
    def needs(self) -> Needs:
        if not self.routed:
            return NOTHING
        readings = [] if self.cls_layer is None else [Reading("cls_state", self.cls_layer)]
        return Needs(frozenset(readings), text=self.text > 0)

    @property
    def made_for(self) -> Mapping[str, str]:
        question = "yes" if self.text or not self.routed else "no"
        own = {"branches": ",".join(self.branches), "mixture": self.mixture, "question": question}
        return {**super().made_for, **own}

    def prepare(self, config: Any, progress: float) -> None:
        self.equal, self.balance = progress < config.equal_first, config.balance

    def penalty(self) -> Tensor | None:
        """Load loss (Switch Transformer, arXiv 2101.03961, eq. 4): 1 where branches are taken equally often.

        Of no use where none is ever left out.
        """
        rated, self.rated = self.rated, None
        if rated is None or self.equal or not self.balance:
            return None
        taken = (self.mixed(rated) > 0).float().mean(dim=0)
        return self.balance * rated.shape[1] * (taken / taken.sum() * rated.softmax(dim=-1).mean(dim=0)).sum()

    def weights(self, image: Tensor, question: Tensor | None) -> Tensor:
        """Of each branch, (B, branches), for vectors of images (B, image) and of questions (B, text)."""
        vectors = [self.norm_image(image)]
        if self.norm_text is not None:
            vectors.append(self.norm_text(question))
        logits: Tensor = self.router(torch.cat(vectors, dim=-1))
        if self.training:
            self.rated = logits
            if self.equal:
                return torch.full_like(logits, 1 / logits.shape[1])
        return self.mixed(logits)

    def mixed(self, logits: Tensor) -> Tensor:
        """Weights of branches by what the router says of them, both (B, branches)."""
        if self.mixture == "all" or len(self.branches) == 2:
            return logits.softmax(dim=-1)
        # Of equal ones the first are taken.
        taken = torch.zeros_like(logits).scatter(1, top_k(logits, 2), 1.0)
        return torch.where(taken > 0, logits, -torch.inf).softmax(dim=-1)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        begun = self.begin(tokens, own)
        return self.finish(replace(begun, text=tokens.text), own) if self.routed else begun.features

    def begin(self, tokens: VisualTokens, own: Own) -> VisualTokens:
        """What each branch makes of the tokens, (B, branches * K, out) in a row, and the vector that the router reads.

        Of the whole the router is all that depends on the question.
        """
        made = self.made(tokens.features).flatten(1, 2)
        return replace(in_grids(made, [(len(self.branches), self.keep)]), image=self.image(tokens))

    def made(self, features: Tensor) -> Tensor:
        """What each branch makes of the tokens, (B, branches, K, out)."""
        made = [self.projections[name](branch(features)) for name, branch in self.branches.items()]
        return torch.stack(made, dim=1)

    def image(self, tokens: VisualTokens) -> Tensor:
        """What the router reads of images, (B, image)."""
        if self.cls_layer is None:
            return tokens.features.mean(dim=1)
        return tokens.readings[Reading("cls_state", self.cls_layer)].to(tokens.features)

    def finish(self, begun: VisualTokens, own: Own) -> Tensor:
        if begun.image is None or (self.text and begun.text is None):
            raise AssertionError("image and question are among its needs")
        question = begun.text.mean.to(begun.features) if self.text and begun.text else None
        weights = self.weights(begun.image, question)
        made = begun.features.reshape(-1, len(self.branches), self.keep, begun.features.shape[-1])
        return (weights[..., None, None] * made).sum(dim=1)


class LearnedQueries(nn.Module):
    """The resampler: `keep` learned queries look at the tokens (B, N, width) of a grid."""

    def __init__(self, grid: Grid, keep: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(0.02 * torch.randn(keep, width))
        self.pos = nn.Parameter(0.02 * torch.randn(prod(grid), width))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, features: Tensor) -> Tensor:
        """What the queries see, (B, keep, width)."""
        normed = self.norm(features)
        seen = attend(self.wq(self.query), self.wk(normed + self.pos), self.wv(normed), self.heads)
        out: Tensor = self.wo(seen)
        return out


class GatedPruning(nn.Module):
    """The `keep` tokens of (B, N, width) that a linear layer rates highest, each times the sigmoid of its rate."""

    def __init__(self, keep: int, width: int) -> None:
        super().__init__()
        self.keep = keep
        self.score = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Those tokens in raster order, (B, keep, width)."""
        rates: Tensor = self.score(features).squeeze(-1)
        chosen = ascending(top_k(rates, self.keep))
        gate = torch.gather(rates, 1, chosen).sigmoid()
        return gather_tokens(features, chosen) * gate.unsqueeze(-1)
