"""What a recipe may spend on visual tokens."""

from __future__ import annotations

from vtc.recipe.values import Keep, Ratio, Written


class Budget(Written):
    """What a recipe may spend, in place of a ``keep`` in each of its pruning stages.

    Based on LearnPruner (arXiv 2604.23950), which fixes the ratio at 3.
    """

    keep_average: Keep
    """Mean number of visual tokens of an image over the decoder's layers (what papers call retained tokens), or that as
    a share of the image's tokens."""
    ratio: Ratio = 3.0
    """How many times as many tokens each pruning stage lets through as the next one; above 1."""
