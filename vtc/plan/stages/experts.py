"""Stages of experts in numbers: fewer in each decoder layer, or fewer for visual tokens alone."""

from __future__ import annotations

from dataclasses import replace
from math import comb

from vtc.plan.state import Context, Rules, Step, TokenState
from vtc.recipe.stages import MergeExpertsEntry, PruneExpertsEntry, StageEntry, VisualExpertsEntry
from vtc.recipe.stages.prune_experts import MOST_SETS
from vtc.recipe.values import experts_left


def check_last(entry: StageEntry, rules: Rules) -> None:
    """Report a stage that changes experts of which visual tokens have been given some."""
    splitting = rules.find(lambda stage: isinstance(stage, VisualExpertsEntry))
    if splitting:
        rules.fault("", f"changes experts of which stages.{splitting[0]} gives visual tokens some; move it before that")


def check_prune(entry: PruneExpertsEntry, rules: Rules) -> None:
    """Report experts that are merged before some are dropped."""
    check_last(entry, rules)
    merging = rules.find(lambda stage: isinstance(stage, MergeExpertsEntry))
    if merging:
        rules.fault("", f"routers go on telling apart what stages.{merging[0]} merges; drop experts before it")


def check_visual(entry: VisualExpertsEntry, rules: Rules) -> None:
    """Report experts that are merged before visual tokens are given some."""
    check_last(entry, rules)
    merging = rules.find(lambda stage: isinstance(stage, MergeExpertsEntry))
    if merging:
        rules.fault("", f"routers go on telling apart what stages.{merging[0]} merges; leave one of the two out")


def prune(entry: PruneExpertsEntry, state: TokenState, context: Context) -> Step:
    """Drop experts; the tokens stay as they are."""
    count = _count(entry, state, context)
    if count is None:
        return Step(state, "not possible")
    decoder = state.decoder
    if entry.experts == "auto" and entry.score == "naee":
        sets = comb(decoder.experts, count)
        if sets > MOST_SETS:
            words = f"{count} of {decoder.experts} experts are {sets:.3g} sets, and at most {MOST_SETS} are"
            context.fault("score", f"{words} tried; choose by another score, such as reap")
    after = replace(state, decoder=decoder.with_experts(count))
    return Step(after, f"{count} of {decoder.experts} experts of each layer stay", experts=count)


def merge(entry: MergeExpertsEntry, state: TokenState, context: Context) -> Step:
    """Merge experts; the tokens stay as they are."""
    groups = None if entry.groups == "auto" else entry.groups
    if groups is not None:
        members = sum(len(group) for group in groups[0])
        _check_lists(context, state, "groups", len(groups), members, every=True)
    count = _possible(state, context, "groups", entry.keep, None if groups is None else len(groups[0]))
    if count is None:
        return Step(state, "not possible")
    after = replace(state, decoder=state.decoder.with_experts(count, merged=True))
    detail = f"{count} of {state.decoder.experts} experts of each layer are left by merging"
    return Step(after, detail, experts=count)


def visual(entry: VisualExpertsEntry, state: TokenState, context: Context) -> Step:
    """Give visual tokens experts of their own; the tokens stay as they are."""
    count = _count(entry, state, context)
    if count is None:
        return Step(state, "not possible")
    after = replace(state, decoder=replace(state.decoder, visual_experts=count))
    detail = f"visual tokens choose among {count} of {state.decoder.experts} experts of each layer"
    return Step(after, detail, visual_experts=count)


def _count(entry: PruneExpertsEntry | VisualExpertsEntry, state: TokenState, context: Context) -> int | None:
    """Experts of a layer that an entry keeps; None, and a fault, where that cannot be."""
    numbers = None if entry.experts == "auto" else entry.experts
    if numbers is not None:
        _check_lists(context, state, "experts", len(numbers), max(max(layer) for layer in numbers) + 1)
    return _possible(state, context, "experts", entry.keep, None if numbers is None else len(numbers[0]))


def _possible(
    state: TokenState, context: Context, lists: str, keep: int | float | None, listed: int | None
) -> int | None:
    """Experts of a layer that lists, or else `keep`, leave; None, and a fault, where that cannot be."""
    experts, active = state.decoder.experts, state.decoder.active_experts
    if experts == 1:
        context.fault("", f"{context.facts.model_type} is dense here, it has no experts; leave the stage out")
        return None
    count = experts_left(keep or experts, experts) if listed is None else listed
    if not active <= count <= experts:
        words = f"leaves {count} of {experts} experts, and a token passes {active}; leave {active} to {experts}"
        context.fault("keep" if listed is None else lists, words)
        return None
    return count


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
