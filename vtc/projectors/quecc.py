"""QueCC (arXiv 2411.03312): the question steers how each cell of the grid is seen.

The authors run the question through the language model alone and take the last state of its last token. Here the
question is one vector as stages get it, the mean of its input embeddings: it costs nothing, and knows less.
"""

from __future__ import annotations

from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.base import Own
from vtc.projectors.squares import SeesSquares
from vtc.recipe.needs import Needs
from vtc.resampling import windows
from vtc.visual_tokens import VisualTokens

EPSILON = 1e-6


class QueCC(SeesSquares):
    """The question asks for each square, in the encoder's width; then the model's own projector.

    Parameters
    ----------
    grid, side, width, heads, layers
        As of :class:`~vtc.projectors.squares.SeesSquares`; the authors have 8 heads.
    text : int
        Values of the question.
    """

    def __init__(self, grid: Grid, side: int, width: int, heads: int, text: int, layers: tuple[int, ...]) -> None:
        super().__init__(grid, side, width, heads, layers)
        self.text_projection = nn.Sequential(nn.Linear(text, width), nn.LayerNorm(width, eps=EPSILON))
        self.q_proj = _normed(width, width)
        self.k_proj = _normed(width * len(layers), width)
        self.v_proj = _normed(width * len(layers), width)
        self.q_downsample = nn.Conv2d(width, width, side, stride=side, groups=width)

    @property
    def needs(self) -> Needs:
        return super().needs | Needs(text=True)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        if tokens.text is None:
            raise AssertionError("the question is among its needs")
        several, question = self.read(tokens), tokens.text.mean.to(tokens.features)
        steered = tokens.features + self.text_projection(question).unsqueeze(1)
        asking = windows(self.q_proj(steered), self.grid, self.side)
        # A convolution whose kernel is its stride is a weighted sum of each square.
        kernel = self.q_downsample.weight.flatten(1).transpose(0, 1)  # (side * side, width)
        query = (asking * kernel).sum(dim=2)
        if self.q_downsample.bias is not None:
            query = query + self.q_downsample.bias
        return own(self.see(query, self.k_proj(several), self.v_proj(several)))


def _normed(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out), nn.LayerNorm(out, eps=EPSILON))
