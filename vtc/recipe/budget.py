"""What a recipe may spend on visual tokens."""

from __future__ import annotations

from vtc.recipe.values import Keep, Ratio, Written


class Budget(Written):
    """What a recipe may spend, in place of a ``keep`` in each of its pruning stages.

    ``keep_average`` is the mean number of visual tokens over the decoder's layers (what papers call retained tokens),
    or that as a share of the tokens of an image; each pruning stage lets ``ratio`` times as many through as the next.

    Based on LearnPruner (arXiv 2604.23950), which fixes the ratio at 3.
    """

    keep_average: Keep
    ratio: Ratio = 3.0
