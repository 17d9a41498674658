"""What each stage of a recipe does to the visual tokens of one model, or why it cannot.

Of the values left to calibration, a filter's grid is provisionally half the input's on each side, and CLS
attention is read at the feature layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.plan.budget import budget_keeps
from vtc.plan.depth import DecoderDepth, Faults, listed_layers
from vtc.plan.selectors import these_work, why_not
from vtc.recipe import Recipe
from vtc.recipe.selectors import (
    AnyDecoderSelector,
    ClsAttentionEntry,
    EVSEntry,
    LearnedEntry,
    RandomEntry,
    RelevanceEntry,
    TextAttentionEntry,
)
from vtc.recipe.stages import (
    AnyStage,
    DropLayersEntry,
    FrequencyFilterEntry,
    PruneEntry,
    PruneInDecoderEntry,
    VisualExitEntry,
)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a recipe in numbers.

    Attributes
    ----------
    kind, detail
        The stage's kind, and what it does here in words.
    grids_in, grids_out
        (H, W) of the visual tokens of each run of placeholders, grid by grid; none once a selector has left no grid.
    tokens_in, tokens_out
        Visual tokens of one image, before and after the stage; for stages of the decoder those that enter it,
        and 0 after an exit.
    layer
        The decoder layer of a `prune_in_decoder` or a `visual_exit`, else None.
    layers
        Layers that the stage is about, as the model numbers them: those dropped, ascending, or the encoder
        layers that a selector reads.
    """

    kind: str
    detail: str
    grids_in: tuple[Grid, ...]
    grids_out: tuple[Grid, ...]
    tokens_in: int
    tokens_out: int
    layer: int | None = None
    layers: tuple[int, ...] = ()


# Order ------------------------------------------------------------------------------------------------------


def _rank(stage: AnyStage) -> int:
    match stage:
        case DropLayersEntry(component="encoder"):
            return 0
        case FrequencyFilterEntry():
            return 1
        case PruneEntry():
            return 2
        case _:
            return 3


def check_combination(recipe: Recipe, faults: Faults, facts: ModelFacts | None = None) -> None:
    """Refuse stages that cannot work together on any model; one that is known makes advice fit it."""
    _check_order(recipe, faults)
    filters = [number for number, stage in enumerate(recipe.stages) if isinstance(stage, FrequencyFilterEntry)]
    prunes = [(number, stage) for number, stage in enumerate(recipe.stages) if isinstance(stage, PruneEntry)]
    exits = [number for number, stage in enumerate(recipe.stages) if isinstance(stage, VisualExitEntry)]
    for number, stage in prunes:
        if stage.positions != prunes[0][1].positions:
            problem = f"stages.{prunes[0][0]} says {prunes[0][1].positions}; one recipe has one convention"
            faults.add(number, "positions", problem)
        if filters and filters[0] < number and stage.selector.reads_encoder_grid:
            works = these_work(facts, filtered=True, pruned=number > prunes[0][0])
            faults.add(
                number,
                "selector",
                f"{stage.selector.name} scores the encoder's own patches, and stages.{filters[0]} has "
                f"replaced those; after a frequency_filter these work: {works}",
            )
    for number in exits[1:]:
        faults.add(number, "", f"all visual tokens have left at stages.{exits[0]} already")
    _check_budget(recipe, faults)


def _check_budget(recipe: Recipe, faults: Faults) -> None:
    pruning = [(number, s) for number, s in enumerate(recipe.stages) if isinstance(s, PruneEntry | PruneInDecoderEntry)]
    if recipe.budget is not None and not pruning:
        faults.add_at(("budget",), "nothing to spend it: the recipe has neither a prune nor a prune_in_decoder stage")
    for number, stage in pruning:
        if stage.keep is None and recipe.budget is None:
            faults.add(number, "", "keep is missing; give a number of tokens, a fraction, or the recipe a budget")
        elif stage.keep is not None and recipe.budget is not None:
            faults.add(number, "keep", "is the recipe's budget to decide; leave one of the two out")


def _check_order(recipe: Recipe, faults: Faults) -> None:
    latest = 0
    for number, stage in enumerate(recipe.stages):
        before = recipe.stages[latest]
        if _rank(stage) >= _rank(before):
            latest = number
        elif isinstance(stage, FrequencyFilterEntry) and isinstance(before, PruneEntry):
            faults.add(number, "", f"needs a whole grid, and stages.{latest} has pruned it; put the filter first")
        else:
            what = "dropping encoder layers" if isinstance(stage, DropLayersEntry) else stage.kind
            faults.add(number, "", f"{what} happens before {before.kind}; move it in front of stages.{latest}")


# Stages -----------------------------------------------------------------------------------------------------


def plan_stages(
    recipe: Recipe,
    facts: ModelFacts,
    encoder_layers: tuple[int, ...],
    encoder_dropped: dict[int, tuple[int, ...]],
    depth: DecoderDepth,
    faults: Faults,
) -> tuple[StagePlan, ...]:
    """Follow one image's visual tokens through the stages."""
    layout, spans = facts.layout, facts.layout.spans
    before_decoder = any(isinstance(stage, FrequencyFilterEntry | PruneEntry) for stage in recipe.stages)
    # Counts are those of one run of placeholders until the end.
    tokens = layout.selectable if before_decoder else layout.tokens
    grids = layout.grids
    keeps = {number: spans * keep for number, keep in budget_keeps(recipe, facts, depth, faults).items()}
    cut_at = {number: layer for layer, number in depth.cuts.items()}
    plans = []
    for number, stage in enumerate(recipe.stages):
        tokens_in, grids_in = tokens, grids
        layer: int | None = None
        layers: tuple[int, ...] = ()
        match stage:
            case FrequencyFilterEntry():
                if grids:  # check_order has refused a filter behind a prune
                    grids = _filter_grids(stage, grids, spans, number, faults)
                    tokens = sum(rows * columns for rows, columns in grids)
                detail = f"{_sides(grids_in)} tokens to {_sides(grids)}"
            case PruneEntry():
                tokens = _kept_tokens(keeps.get(number, stage.keep), tokens, spans, number, faults)
                grids = ()
                layers = _attention_layers(stage, facts, encoder_layers, number, faults)
                _check_selector(recipe, number, stage, facts, faults)
                detail = _selector_detail(stage, layers)
            case PruneInDecoderEntry():
                tokens = _kept_tokens(keeps.get(number, stage.keep), tokens, spans, number, faults)
                grids = ()
                layer = cut_at.get(number)
                detail = f"before decoder layer {layer}, {_cut_detail(stage.selector)}"
            case VisualExitEntry():
                layer = depth.exit
                detail = f"before decoder layer {layer}"
            case DropLayersEntry():
                layers = encoder_dropped[number] if stage.component == "encoder" else depth.dropped[number]
                verb = "skipped by visual tokens" if stage.visual_only else "removed"
                detail = f"{stage.component} {_listing(layers)} {verb}"
        tokens_out = 0 if stage.kind == "visual_exit" else tokens
        plans.append(
            StagePlan(stage.kind, detail, grids_in, grids, spans * tokens_in, spans * tokens_out, layer, layers)
        )
    return tuple(plans)


def _check_selector(recipe: Recipe, number: int, stage: PruneEntry, facts: ModelFacts, faults: Faults) -> None:
    """Report a selector that cannot choose among this model's tokens, and name those that can."""
    selector = stage.selector
    pruned, filtered = (
        any(isinstance(earlier, kind) for earlier in recipe.stages[:number])
        for kind in (PruneEntry, FrequencyFilterEntry)
    )
    problem = why_not(selector, facts, pruned=pruned)
    if problem is not None:
        works = these_work(facts, filtered=filtered, pruned=pruned)
        faults.add(number, "selector", f"{selector.name} {problem}; these work: {works}")
    elif isinstance(selector, EVSEntry) and selector.frames not in (None, len(facts.layout.grids)):
        faults.add(number, "selector.frames", f"is {selector.frames}, and the clip has {len(facts.layout.grids)}")


def _kept_tokens(keep: int | float | None, tokens: int, spans: int, number: int, faults: Faults) -> int:
    if isinstance(keep, float):
        return max(1, round(keep * tokens))
    if keep is None:  # check_combination has refused a stage without a budget
        return tokens
    return _each_span(keep, tokens, spans, number, faults)


def _each_span(keep: int, tokens: int, spans: int, number: int, faults: Faults) -> int:
    """What each run of `tokens` keeps where an image keeps `keep`."""
    if keep > spans * tokens:
        whole = spans * tokens
        faults.add(number, "keep", f"cannot keep {keep} of {whole} visual tokens; give at most {whole} or a fraction")
        return tokens
    if keep % spans:
        near = max(1, round(keep / spans)) * spans
        problem = f"{keep} tokens cannot be shared equally by the {spans} tiles of an image; give {near} or a fraction"
        faults.add(number, "keep", problem)
    return max(1, keep // spans)


def _filter_grids(
    stage: FrequencyFilterEntry, grids: tuple[Grid, ...], spans: int, number: int, faults: Faults
) -> tuple[Grid, ...]:
    total = sum(rows * columns for rows, columns in grids)
    if stage.keep == "auto" and len(grids) > 1:
        problem = f"auto needs tokens that form one grid, and here they form {len(grids)}; give a fraction"
        faults.add(number, "keep", problem)
    if len(grids) == 1 or stage.keep == "auto":
        keep = _each_span(stage.keep, total, spans, number, faults) if isinstance(stage.keep, int) else stage.keep
        return tuple(_filter_grid(keep, grid, number, faults) for grid in grids)
    share = stage.keep if isinstance(stage.keep, float) else stage.keep / (spans * total)
    side = math.sqrt(min(share, 1))
    smaller = tuple((max(1, round(rows * side)), max(1, round(columns * side))) for rows, columns in grids)
    found = spans * sum(rows * columns for rows, columns in smaller)
    if isinstance(stage.keep, int) and found != stage.keep:
        faults.add(number, "keep", f"{stage.keep} tokens cannot be spread over {len(grids)} grids; {found} can")
    return smaller


def _filter_grid(wanted: int | float | str, grid: Grid, number: int, faults: Faults) -> Grid:
    if isinstance(wanted, str):
        return math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)
    total = grid[0] * grid[1]
    keep = max(1, round(wanted * total)) if isinstance(wanted, float) else wanted
    found = smaller_grid(grid, keep)
    if found is None:
        below = next(k for k in range(keep, 0, -1) if smaller_grid(grid, k))
        above = next(k for k in range(keep, total + 1) if smaller_grid(grid, k))
        faults.add(
            number,
            "keep",
            f"{keep} tokens form no grid inside {_side(grid)}; the nearest that do: "
            f"{below} ({_side(smaller_grid(grid, below))}), {above} ({_side(smaller_grid(grid, above))})",
        )
        return grid
    return found


def smaller_grid(grid: Grid, keep: int) -> Grid | None:
    """Find the grid of exactly `keep` tokens inside `grid` whose aspect is nearest to it.

    Parameters
    ----------
    grid
        (H, W) of the input.
    keep
        Tokens wanted.

    Returns
    -------
    (int, int) or None
        (h, w) with h * w == keep, h <= H, w <= W; of two equally near the wider; None when there is none.
    """
    fits = [(h, keep // h) for h in range(1, grid[0] + 1) if keep % h == 0 and keep // h <= grid[1]]
    return min(fits, key=lambda side: (abs(math.log(side[0] * grid[1] / (side[1] * grid[0]))), side[0]), default=None)


def _attention_layers(
    stage: PruneEntry, facts: ModelFacts, encoder_layers: tuple[int, ...], number: int, faults: Faults
) -> tuple[int, ...]:
    selector = stage.selector
    if not isinstance(selector, ClsAttentionEntry):
        try:
            return selector.layers_read(facts, encoder_layers)
        except ValueError as error:
            faults.add(number, "selector", str(error))
            return ()
    if isinstance(selector.layers, str):
        if selector.last > len(encoder_layers):
            faults.add(number, "selector.last", f"{selector.last} layers, but only {len(encoder_layers)} run")
        return encoder_layers[-selector.last :]
    key = "selector.layers"
    layers = listed_layers(selector.layers, facts.encoder.layers, "encoder", number, key, faults)
    for layer in layers:
        if layer > facts.encoder.feature_layer:
            faults.add(
                number,
                key,
                f"encoder layer {layer} is not computed; layers up to {facts.encoder.feature_layer} are",
            )
        elif layer not in encoder_layers:
            faults.add(number, key, f"encoder layer {layer} is dropped by this recipe")
    return layers


# Words ------------------------------------------------------------------------------------------------------


def _side(grid: Grid | None) -> str:
    return f"{grid[0]}x{grid[1]}" if grid else "no grid"


def _sides(grids: Sequence[Grid]) -> str:
    runs = [(_side(grid), len(list(run))) for grid, run in groupby(grids)]
    return " + ".join(side if count == 1 else f"{count} times {side}" for side, count in runs) or "no grid"


def _listing(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers)) or 'none'}"


def _cut_detail(selector: AnyDecoderSelector) -> str:
    if isinstance(selector, RelevanceEntry):
        return f"relevance, {selector.checkpoint}"
    if not isinstance(selector, TextAttentionEntry):
        return selector.name
    positions = "" if selector.rope else ", without rotary positions"
    return f"text_attention of {selector.queries.replace('_', ' ')}{positions}"


def _selector_detail(stage: PruneEntry, layers: tuple[int, ...]) -> str:
    match stage.selector:
        case ClsAttentionEntry():
            return f"cls_attention of encoder {_listing(layers)}"
        case RandomEntry(seed=seed):
            return f"random, seed {seed}"
        case LearnedEntry(checkpoint=checkpoint):
            return f"learned, {checkpoint}"
        case selector if layers:
            return f"{selector.name}, reading encoder {_listing(layers)}"
        case selector:
            return selector.name
