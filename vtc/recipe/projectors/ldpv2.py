"""LDPv2 in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import PooledEntry, linear, passing, pooling
from vtc.recipe.selectors.base import Product

NEAR = 9
"""Tokens that the convolution looks at."""


class LdpV2Entry(PooledEntry):
    """Two layers on all tokens, average pooling, and a small convolution that is added.

    Based on MobileVLM V2 (arXiv 2402.03766).
    """

    summary = "two layers, then average pooling and a convolution"
    paper = "MobileVLM V2 (arXiv 2402.03766)"
    name: Literal["ldpv2"] = "ldpv2"

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, out = facts.token_width, facts.decoder.width
        return linear((width, out), (out, out)) + (NEAR + 1) * out

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, out = facts.token_width, facts.decoder.width
        return [
            *passing(prod(grid), (width, out), (out, out)),
            *pooling(out, grid, self.grid_of(keep, grid)),
            (keep, NEAR, out),
        ]
