"""`prune` in numbers: a selector keeps some of the tokens before they enter the decoder.

A layer left to calibration is provisionally the feature layer.
"""

from __future__ import annotations

from dataclasses import replace

from vtc.facts.model import ModelFacts
from vtc.plan.flops import product_flops
from vtc.plan.state import Context, Rules, Step, TokenState
from vtc.recipe.selectors import ENCODER_SELECTORS
from vtc.recipe.selectors.base import Choice
from vtc.recipe.stages import PruneEntry


def check(entry: PruneEntry, rules: Rules) -> None:
    """Report another convention of positions, and a selector that cannot choose among the tokens that come to it."""
    told = rules.find(lambda stage: stage.convention is not None)
    if told and rules.earlier[told[0]].convention != entry.positions:
        convention = rules.earlier[told[0]].convention
        rules.fault("positions", f"stages.{told[0]} says {convention}; one recipe has one convention")
    name, facts = entry.selector.name, rules.facts
    pruned = bool(rules.find(lambda stage: not stage.keeps_grid))
    remade = rules.find(lambda stage: not stage.keeps_places)
    projected = rules.find(lambda stage: bool(stage.projectors))
    works = these_work(facts, remade=bool(remade), pruned=pruned, projected=bool(projected))
    if projected and not entry.selector.after_projector:
        rules.fault(
            "selector",
            f"{name} looks at the encoder's tokens, and stages.{projected[0]} has made others in the decoder's space; "
            f"after a {rules.earlier[projected[0]].kind} these work: {works}",
        )
    elif remade and entry.selector.reads_encoder_grid:
        rules.fault(
            "selector",
            f"{name} scores the encoder's own patches, and stages.{remade[0]} has "
            f"replaced those; after a {rules.earlier[remade[0]].kind} these work: {works}",
        )
    problem = None if facts is None else entry.selector.why_not(facts, pruned=pruned)
    if problem is not None:
        rules.fault("selector", f"{name} {problem}; these work: {works}")


def step(entry: PruneEntry, state: TokenState, context: Context) -> Step:
    """Keep what the selector chooses."""
    selector, facts, running = entry.selector, context.facts, context.encoder.kept
    keep = context.kept(entry.keep, state.tokens)
    readings = {}
    if running:
        selector.check(facts, running, lambda key, problem: context.fault(f"selector.{key}".rstrip("."), problem))
        readings = dict(selector.readings(facts, running))
    layers = tuple(dict.fromkeys(reading.layer for reading in readings.values()))
    choice = Choice(state.tokens, keep, context.text_tokens, facts, state.grids)
    after = replace(
        state.kept(keep),
        positions=state.positions or entry.positions,
        readings=state.readings | frozenset(readings.values()),
        projections=state.tokens if selector.projects and state.projections is None else state.projections,
    )
    if not context.faults.found:  # what cannot be done has no cost
        after = after.costing("encoder", product_flops(selector.products(choice)))
    return Step(after, selector.described(layers), layers=layers, parameters=selector.parameters(facts))


def these_work(facts: ModelFacts | None, *, remade: bool, pruned: bool, projected: bool = False) -> str:
    """Name the selectors that can choose among a model's tokens.

    Parameters
    ----------
    facts
        The model's sizes; None where no model is known yet.
    remade
        Whether an earlier stage has replaced the encoder's own patches.
    pruned
        Whether an earlier stage has pruned already, so that grids are no longer whole.
    projected
        Whether an earlier stage has made tokens in the decoder's space.
    """
    return ", ".join(
        name
        for name, entry in ENCODER_SELECTORS.items()
        if not (remade and entry.reads_encoder_grid)
        and not (projected and not entry.after_projector)
        and (facts is None or entry.why_not(facts, pruned=pruned) is None)
    )
