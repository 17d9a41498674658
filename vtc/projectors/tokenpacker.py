"""TokenPacker (arXiv 2407.02392): each token of a smaller grid looks at the patches of its own cell.

A query is the grid shrunk bilinearly; keys and values come from several encoder layers side by side. The authors' code
adds no query to what is seen, though the paper speaks of an update.
"""

from __future__ import annotations

from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, two_layers
from vtc.projectors.squares import SeesSquares
from vtc.resampling import Resampling, bilinear
from vtc.visual_tokens import VisualTokens

EPSILON = 1e-6


class TokenPacker(SeesSquares):
    """A token of the grid shrunk bilinearly asks for each square, then two layers.

    Parameters
    ----------
    grid, side, width, heads, layers
        As of :class:`~vtc.projectors.squares.SeesSquares`.
    out : int
        Values of a token of the decoder.
    """

    def __init__(self, grid: Grid, side: int, width: int, heads: int, out: int, layers: tuple[int, ...]) -> None:
        super().__init__(grid, side, width, heads, layers)
        self.shrink = Resampling(*(bilinear(size, size // side) for size in grid))
        read = width * len(layers)
        self.q_proj_1 = nn.Linear(width, width, bias=False)
        self.k_proj_1 = two_layers(read, width, width)
        self.v_proj_1 = two_layers(read, width, width)
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(width, eps=EPSILON) for _ in range(3))
        self.mlp = two_layers(width, out, out)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        several = self.read(tokens)
        query = self.ln_q_1(self.q_proj_1(self.shrink(tokens.features)))
        seen = self.see(query, self.ln_k_1(self.k_proj_1(several)), self.ln_v_1(self.v_proj_1(several)))
        projected: Tensor = self.mlp(seen)
        return projected
