"""QueCC (arXiv 2411.03312): the question steers how each cell of the grid is seen.

The authors run the question through the language model alone and take the last state of its last token. Here the
question is one vector as stages get it, the mean of its input embeddings: it costs nothing, and knows less.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.attention import CrossAttention
from vtc.projectors.base import Own, TrainedProjector
from vtc.projectors.resampling import windows
from vtc.projectors.tokenpacker import side_by_side
from vtc.recipe.needs import Needs, Reading
from vtc.visual_tokens import VisualTokens

EPSILON = 1e-6


class QueCC(TrainedProjector):
    """One token for each `side` x `side` patches, in the encoder's width, then the model's own projector.

    Parameters
    ----------
    grid : (int, int)
    side : int
        Divides both.
    width, heads, text : int
        Values of a token of the encoder, heads of the attention (the authors have 8), and values of the question.
    layers : tuple of int
        Encoder layers whose inputs are read, side by side.
    """

    def __init__(self, grid: Grid, side: int, width: int, heads: int, text: int, layers: tuple[int, ...]) -> None:
        super().__init__(grid, prod(grid) // side**2)
        self.side, self.layers = side, layers
        self.text_projection = nn.Sequential(nn.Linear(text, width), nn.LayerNorm(width, eps=EPSILON))
        self.q_proj = _normed(width, width)
        self.k_proj = _normed(width * len(layers), width)
        self.v_proj = _normed(width * len(layers), width)
        self.q_downsample = nn.Conv2d(width, width, side, stride=side, groups=width)
        self.clip_attn = CrossAttention(width, heads)

    @property
    def needs(self) -> Needs:
        return Needs(frozenset(Reading("hidden_states", layer) for layer in self.layers), text=True)

    @property
    def made_for(self) -> Mapping[str, str]:
        return {**super().made_for, "layers": ",".join(map(str, self.layers))}

    def seen(self, tokens: VisualTokens, question: Tensor) -> Tensor:
        """Tokens (B, K, width) in the encoder's width, for questions (B, text)."""
        several = side_by_side(tokens, self.layers)
        steered = tokens.features + self.text_projection(question).unsqueeze(1)
        asking = windows(self.q_proj(steered), self.grid, self.side)
        # A convolution whose kernel is its stride is a weighted sum of each square.
        kernel = self.q_downsample.weight.flatten(1).transpose(0, 1)  # (side * side, width)
        query = (asking * kernel).sum(dim=2)
        if self.q_downsample.bias is not None:
            query = query + self.q_downsample.bias
        cells = (windows(part(several), self.grid, self.side) for part in (self.k_proj, self.v_proj))
        out: Tensor = self.clip_attn(query.unsqueeze(2), *cells).squeeze(2)
        return out

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        if tokens.text is None:
            raise AssertionError("the question is among its needs")
        return own(self.seen(tokens, tokens.text.mean.to(tokens.features)))


def _normed(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out), nn.LayerNorm(out, eps=EPSILON))
