"""Tokens some of which are equal, and selectors that then have to keep the lowest places."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.selectors.inputs import make, tokens
from vtc.visual_tokens import VisualTokens

ONE_BY_ONE = ("cls_attention", "learned", "fopru", "divprune", "cdpruner", "todre", "mmtok", "hired", "globalcom2")
"""Selectors that look at each token for itself or for what it adds, and not at where it stands."""
SIZES = [(22, 5), (36, 8), (75, 37), (131, 64)]
"""Tokens and widths; vector registers hold 8 or 16 numbers, which divide few of these."""
KEEP = 4


def copies(count: int) -> list[list[int]]:
    """Which token stands at each of `count` places: every token twice in a row; all tokens over and over."""
    return [[place // 2 for place in range(count)], [place % (count // 3 + 1) for place in range(count)]]


def repeated(copy: list[int], width: int) -> VisualTokens:
    """Tokens of two images, some of which are equal."""
    return tokens(2, (1, len(copy)), width=width).keep(torch.tensor(copy).expand(2, -1))


def out_of_turn(chosen: Tensor, copy: list[int]) -> list[int]:
    """Places that were chosen although an equal token of a lower place was not."""
    return [
        place
        for row in chosen.tolist()
        for place in row
        if any(copy[lower] == copy[place] and lower not in row for lower in range(place))
    ]


def broken_ties() -> list[tuple[str, int, int]]:
    """Names, tokens and widths with which a selector broke the tie rule in PyTorch."""
    return [
        (name, count, width)
        for name in ONE_BY_ONE
        for count, width in SIZES
        for copy in copies(count)
        for keep in (KEEP, count // 3, count // 2)
        if out_of_turn(make(name, (1, count), width=width).select(repeated(copy, width), keep), copy)
    ]
