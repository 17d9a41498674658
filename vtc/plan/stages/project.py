"""`project` in numbers: a projector in the place of the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vtc.facts.layout import Block
from vtc.facts.model import ModelFacts
from vtc.plan.flops import product_flops
from vtc.plan.state import Context, Rules, Step, TokenState
from vtc.plan.words import side
from vtc.recipe.projectors import PROJECTORS
from vtc.recipe.stages import ProjectEntry


def check(entry: ProjectEntry, rules: Rules) -> None:
    """Report an earlier stage that has left no whole grid, another projector, and a model that cannot have one."""
    before = rules.find(lambda stage: isinstance(stage, ProjectEntry))
    if before:
        rules.fault("", f"stages.{before[0]} has projected the tokens already; a model has one projector")
    elif pruned := rules.find(lambda stage: not stage.keeps_grid):
        rules.fault("", f"needs a whole grid, and stages.{pruned[-1]} has pruned it; leave one of the two out")
    if entry.budgets and not entry.projector.elastic:
        these = ", ".join(name for name, projector in PROJECTORS.items() if projector.elastic)
        problem = f"{entry.projector.name} is made for one number of tokens; give one, or take an elastic one: {these}"
        rules.fault("keep", problem)
    reason = None if rules.facts is None else why_not(rules.facts)
    if reason is not None:
        rules.fault("", reason)


def why_not(facts: ModelFacts) -> str | None:
    """Say why a model's projector cannot be replaced; None where it can."""
    layout, decoder = facts.layout, facts.decoder
    if decoder.deepstack:
        return f"features of several encoder layers enter the decoder of {facts.model_type}, each by its own projector"
    if any(block != Block(layout.view_grid) for block in layout.blocks):
        return (
            f"views of {facts.model_type} lose padding and are put together before their tokens enter the decoder, and "
            "projectors take each view whole"
        )
    if layout.frames > 1:
        return f"projectors take images, and clips of {layout.frames} frames are asked for"
    return None


def step(entry: ProjectEntry, state: TokenState, context: Context) -> Step:
    """Make the tokens that the projector can make of each view."""
    if len(set(state.grids)) != 1:  # refused by `check`
        return Step(state, "no grid")
    projector, grid, views, facts = entry.projector, state.grids[0], len(state.grids), context.facts
    possible = projector.keeps(grid)
    keep = _wanted(entry, state, context, possible)
    if keep not in possible:
        context.fault("keep", f"{projector.name} cannot make {keep} tokens of {side(grid)}; {_nearest(keep, possible)}")
        return Step(state, projector.name)
    grids = (projector.grid_of(keep, grid),) * views
    after = replace(
        state.remade(grids),
        grids=grids if projector.has_grid else (),
        projected=True,
        projections=views * projector.projections(keep, grid),
        readings=state.readings | frozenset(projector.readings(facts)),
    ).costing("projector", views * product_flops(projector.products(facts, keep, grid)))
    of_each = f" of each of {views} views" if views > 1 else ""
    detail = f"{projector.name}, {side(grid)} tokens{of_each} to {side(grids[0]) if projector.has_grid else keep}"
    layers = tuple(dict.fromkeys(reading.layer for reading in projector.readings(facts)))
    return Step(after, detail, layers=layers, parameters=projector.parameters(facts, keep, grid))


def _wanted(entry: ProjectEntry, state: TokenState, context: Context, possible: Sequence[int]) -> int:
    """Tokens of a view; one projector makes more than come in."""
    views = len(state.grids)
    everywhere = context.facts.layout.spans * views
    if isinstance(entry.keep, int) and entry.keep % everywhere == 0 and entry.keep // everywhere in possible:
        return entry.keep // everywhere
    if isinstance(entry.keep, float):
        return context.kept(entry.keep, state.tokens // views)
    keep = context.kept(entry.keep, state.tokens)
    if keep % views:
        near = max(1, round(keep / views)) * everywhere
        context.fault("keep", f"{entry.keep} tokens cannot be shared equally by {everywhere} views; give {near}")
    return max(1, keep // views)


def _nearest(keep: int, possible: Sequence[int]) -> str:
    near = [max((k for k in possible if k < keep), default=None), min((k for k in possible if k > keep), default=None)]
    found = ", ".join(str(k) for k in near if k is not None)
    return f"the nearest that it can: {found}" if found else "it can make none of such a grid"
