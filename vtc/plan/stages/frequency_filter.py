"""`frequency_filter` in numbers: a smaller grid in place of each grid.

Of a grid left to calibration, half of each side is kept provisionally.
"""

from __future__ import annotations

import math

from vtc.facts.layout import Grid, smaller_grid
from vtc.plan.flops import filter_flops
from vtc.plan.state import Context, Rules, Step, TokenState
from vtc.plan.words import side, sides
from vtc.recipe.stages import FrequencyFilterEntry


def check(entry: FrequencyFilterEntry, rules: Rules) -> None:
    """Report an earlier stage that has left no whole grid."""
    pruned = rules.find(lambda stage: not stage.keeps_grid)
    if pruned:
        rules.fault("", f"needs a whole grid, and stages.{pruned[-1]} has pruned it; put the filter first")


def step(entry: FrequencyFilterEntry, state: TokenState, context: Context) -> Step:
    """Keep the low frequencies of each grid."""
    if not state.grids:  # refused by `check`
        return Step(state, "no grid")
    grids = _smaller_grids(entry, state.grids, context)
    width = context.facts.token_width * (1 + context.facts.decoder.deepstack)
    flops = sum(filter_flops(width, before, after) for before, after in zip(state.grids, grids, strict=True))
    after = state.remade(grids).costing("projector", flops)
    return Step(after, f"{sides(state.grids)} tokens to {sides(grids)}")


def _smaller_grids(entry: FrequencyFilterEntry, grids: tuple[Grid, ...], context: Context) -> tuple[Grid, ...]:
    total, spans = sum(rows * columns for rows, columns in grids), context.facts.layout.spans
    if entry.keep == "auto" and len(grids) > 1:
        problem = f"auto needs tokens that form one grid, and here they form {len(grids)}; give a fraction"
        context.fault("keep", problem)
    if len(grids) == 1 or entry.keep == "auto":
        keep = context.per_span(entry.keep, total) if isinstance(entry.keep, int) else entry.keep
        return tuple(_smaller_grid(keep, grid, context) for grid in grids)
    share = entry.keep if isinstance(entry.keep, float) else entry.keep / (spans * total)
    scale = math.sqrt(min(share, 1))
    smaller = tuple((max(1, round(rows * scale)), max(1, round(columns * scale))) for rows, columns in grids)
    found = spans * sum(rows * columns for rows, columns in smaller)
    if isinstance(entry.keep, int) and found != entry.keep:
        context.fault("keep", f"{entry.keep} tokens cannot be spread over {len(grids)} grids; {found} can")
    return smaller


def _smaller_grid(wanted: int | float | str, grid: Grid, context: Context) -> Grid:
    if isinstance(wanted, str):
        return math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)
    total = grid[0] * grid[1]
    keep = max(1, round(wanted * total)) if isinstance(wanted, float) else wanted
    found = smaller_grid(grid, keep)
    if found is None:
        below = next(k for k in range(keep, 0, -1) if smaller_grid(grid, k))
        above = next(k for k in range(keep, total + 1) if smaller_grid(grid, k))
        near = ", ".join(f"{k} ({side(smaller_grid(grid, k))})" for k in (below, above))
        context.fault("keep", f"{keep} tokens form no grid inside {side(grid)}; the nearest that do: {near}")
        return grid
    return found
