"""`prune_experts` and `merge_experts` in numbers: fewer experts in each decoder layer."""

from __future__ import annotations

from dataclasses import replace
from math import comb

from vtc.plan.state import Context, Rules, Step, TokenState
from vtc.recipe.stages import MergeExpertsEntry, PruneExpertsEntry
from vtc.recipe.stages.prune_experts import MOST_SETS
from vtc.recipe.values import experts_left


def check_prune(entry: PruneExpertsEntry, rules: Rules) -> None:
    """Report experts that are merged before some are dropped."""
    merging = rules.find(lambda stage: isinstance(stage, MergeExpertsEntry))
    if merging:
        rules.fault("", f"routers go on telling apart what stages.{merging[0]} merges; drop experts before it")


def prune(entry: PruneExpertsEntry, state: TokenState, context: Context) -> Step:
    """Drop experts; the tokens stay as they are."""
    numbers = None if entry.experts == "auto" else entry.experts
    if numbers is not None:
        _check_lists(context, state, "experts", len(numbers), max(max(layer) for layer in numbers) + 1)
    count = len(numbers[0]) if numbers is not None else None
    step = _step(state, context, "experts" if count else "keep", entry.keep, count, "stay", merged=False)
    if count is None and entry.score == "naee" and step.experts is not None:
        decoder = state.decoder
        sets = comb(decoder.experts, step.experts)
        if sets > MOST_SETS:
            words = f"{step.experts} of {decoder.experts} experts are {sets:.3g} sets, and at most {MOST_SETS} are"
            context.fault("score", f"{words} tried; choose by another score, such as reap")
    return step


def merge(entry: MergeExpertsEntry, state: TokenState, context: Context) -> Step:
    """Merge experts; the tokens stay as they are."""
    groups = None if entry.groups == "auto" else entry.groups
    if groups is not None:
        members = sum(len(group) for group in groups[0])
        _check_lists(context, state, "groups", len(groups), members, every=True)
    count = len(groups[0]) if groups is not None else None
    return _step(state, context, "groups" if count else "keep", entry.keep, count, "are left by merging", merged=True)


def _step(
    state: TokenState,
    context: Context,
    key: str,
    keep: int | float | None,
    count: int | None,
    verb: str,
    *,
    merged: bool,
) -> Step:
    decoder = state.decoder
    experts, active = decoder.experts, decoder.active_experts
    if experts == 1:
        context.fault("", f"{context.facts.model_type} is dense here, it has no experts; leave the stage out")
        return Step(state, "not possible")
    if count is None:
        count = experts_left(keep or experts, experts)
    if not active <= count <= experts:
        words = f"leaves {count} of {experts} experts, and a token passes {active}; leave {active} to {experts}"
        context.fault(key, words)
        return Step(state, "not possible")
    after = replace(state, decoder=decoder.with_experts(count, merged=merged))
    return Step(after, f"{count} of {experts} experts of each layer {verb}", experts=count)


def _check_lists(
    context: Context, state: TokenState, key: str, layers: int, experts: int, *, every: bool = False
) -> None:
    """Report lists that are of another model."""
    decoder = state.decoder
    if layers != decoder.layers:
        context.fault(key, f"lists {layers} layers, and this model's decoder has {decoder.layers}")
    elif decoder.experts > 1 and (experts != decoder.experts if every else experts > decoder.experts):
        told = f"lists {experts} experts" if every else f"names expert {experts - 1}"
        context.fault(key, f"{told}, and a layer of this model has {decoder.experts}")
