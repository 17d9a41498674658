"""`drop_layers` in numbers: which layers go was decided with all stages in sight (`vtc.plan.depth`)."""

from __future__ import annotations

from vtc.plan.state import Context, Step, TokenState
from vtc.recipe.selectors.base import listing
from vtc.recipe.stages import DropLayersEntry


def step(entry: DropLayersEntry, state: TokenState, context: Context) -> Step:
    """Take layers away; the tokens stay as they are."""
    depth = context.encoder if entry.component == "encoder" else context.decoder
    layers = depth.dropped[context.number]
    verb = "skipped by visual tokens" if entry.visual_only else "removed"
    return Step(state, f"{entry.component} {listing(layers)} {verb}", layers=layers)
