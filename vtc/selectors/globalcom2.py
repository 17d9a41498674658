"""GlobalCom2: let the full view guide how much, and what, each crop keeps (arXiv 2501.05179).

The image is encoded as one full view, the thumbnail, and m crops of n tokens each. Scores s are the CLS token's logits,
before the softmax, mean over heads. With R = keep / N, the thumbnail gets n * R tokens, by s. Crop j gets
n * R * (1 + softmax(S / temperature)_j - 1 / m), S_j being the sum of the thumbnail's s over the region that the crop
covers; its tokens are ranked by its own s plus the thumbnail's, enlarged bilinearly to the crop's patches, each scaled
to unit length within the crop. What rounding budgets down leaves goes to the largest remainders, so that exactly the
budget is kept; the original loses it. Crops have no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.selectors.base import Needs, Selector
from vtc.selectors.views import apportion, by_middle, region, totals, view_size
from vtc.visual_tokens import Reading, VisualTokens


class GlobalCom2(Selector):
    """Budgets and ranks by the thumbnail's CLS logits and the crops' own.

    Parameters
    ----------
    layer : int
        Encoder layer (0-based) whose CLS logits are read; the authors take the last one.
    views : (int, int) or None
        Rows and columns of crops behind the thumbnail; None for a single view, of which the best tokens are kept.
    grid : (int, int)
        Rows and columns of patches in one view.
    temperature : float
        Of the softmax over crops.
    as_published : bool
        Where patches do not divide among crops, give all that is left over to the last row and column of crops, as
        the authors' code does, instead of dividing by the patches' middles.
    """

    def __init__(
        self,
        layer: int,
        views: tuple[int, int] | None,
        grid: tuple[int, int],
        temperature: float = 10.0,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.views = views
        self.grid = grid
        self.temperature = temperature
        self.as_published = as_published

    @property
    def needs(self) -> Needs:
        return Needs(frozenset({Reading("cls_logits", self.layer)}))

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        logits = tokens.read("cls_logits", self.layer).float()
        batch, count = logits.shape
        size = view_size(count, self.views)
        logits = logits.reshape(batch, -1, size)
        if self.views is None:
            return apportion(logits, torch.full_like(logits[:, :, 0], keep), keep)
        thumbnail, crops = logits[:, :1], logits[:, 1:]
        factors = self.factors(thumbnail[:, 0], self.views)
        budgets = torch.cat([torch.ones_like(factors[:, :1]), factors], dim=1) * (size * keep / count)
        enlarged = enlarge(thumbnail[:, 0], self.grid, self.views)
        return apportion(torch.cat([thumbnail, combine(crops, enlarged)], dim=1), budgets, keep)

    def factors(self, thumbnail: Tensor, views: tuple[int, int]) -> Tensor:
        """What the share R of each crop is multiplied by, (B, crops), given the thumbnail's scores (B, n)."""
        divide = _rest_to_last if self.as_published else by_middle
        members = region(divide(self.grid[0], views[0]), divide(self.grid[1], views[1]), views)
        crops = views[0] * views[1]
        return 1 + torch.softmax(totals(thumbnail, members, crops) / self.temperature, dim=1) - 1 / crops


def enlarge(thumbnail: Tensor, grid: tuple[int, int], views: tuple[int, int]) -> Tensor:
    """Scores (B, H * W) of the full view, interpolated for the patches of each crop: (B, crops, H * W)."""
    (height, width), (rows, columns) = grid, views
    image = thumbnail.reshape(-1, 1, height, width)
    image = nn.functional.interpolate(image, (rows * height, columns * width), mode="bilinear", align_corners=False)
    image = image.reshape(-1, rows, height, columns, width)
    return image.transpose(2, 3).reshape(-1, rows * columns, height * width)


def combine(own: Tensor, enlarged: Tensor) -> Tensor:
    """Sum of both scores (..., n), each scaled to unit length."""
    return nn.functional.normalize(own, dim=-1) + nn.functional.normalize(enlarged, dim=-1)


def _rest_to_last(size: int, crops: int) -> list[int]:
    """As :func:`vtc.selectors.views.by_middle`, in runs of size // crops, the last one longer."""
    return [min(i // max(1, size // crops), crops - 1) for i in range(size)]
