"""Clustering in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class ClusteringEntry(EncoderSelectorEntry):
    """Clusters of similar tokens, each as its mean at its centre (DPC-KNN).

    Based on DPC-KNN (Du et al. 2016), as TCFormer (arXiv 2204.08680) and Chat-UniVi (arXiv 2311.08046) use it.
    """

    merges = True
    summary = "means of clusters (DPC-KNN)"
    paper = "DPC-KNN, as in Chat-UniVi (arXiv 2311.08046)"
    reads = "features"
    name: Literal["clustering"] = "clustering"
    neighbours: Annotated[int, Field(ge=1)] = 5
    """Nearest tokens that a density is made of, the token itself among them."""

    def products(self, choice: Choice) -> Iterable[Product]:
        tokens, width = choice.tokens, choice.facts.token_width
        return (tokens, width, tokens), (choice.keep, tokens, width)
