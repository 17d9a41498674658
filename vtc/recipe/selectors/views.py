"""Matrix products of selectors that share a budget between the views of an image."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from vtc.facts.views import views_of
from vtc.recipe.selectors.base import Choice, Product


def views_products(choice: Choice) -> Iterable[Product]:
    """Sum the full view's patches by the crops that show what they do."""
    views = views_of(choice.facts.layout)
    return () if views is None else ((1, prod(views.grid), views.number),)
