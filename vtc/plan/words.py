"""Grids in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vtc.facts.layout import Grid


def side(grid: Grid | None) -> str:
    """Write a grid: ``16x16``."""
    return f"{grid[0]}x{grid[1]}" if grid else "no grid"


def sides(grids: Sequence[Grid]) -> str:
    """Write grids one after the other: ``24x24 + 3 times 12x12``."""
    runs = [(side(grid), len(list(run))) for grid, run in groupby(grids)]
    return " + ".join(one if count == 1 else f"{count} times {one}" for one, count in runs) or "no grid"
