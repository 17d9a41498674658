"""What each stage of a recipe does to the visual tokens of one model, or why it cannot.

Of the values left to calibration, a filter's grid is provisionally half the input's on each side, and CLS
attention is read at the feature layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vtc.facts import ModelFacts
from vtc.plan_budget import budget_keeps
from vtc.plan_depth import DecoderDepth, Faults, listed_layers
from vtc.recipe import Recipe
from vtc.recipe_schema import AnyStage, DropLayers, FrequencyFilter, Prune, PruneInDecoder, VisualExit
from vtc.recipe_selectors import (
    ENCODER_SELECTORS,
    AnyDecoderSelector,
    ClsAttentionSelector,
    LearnedSelector,
    RandomSelector,
    RelevanceSelector,
    TextAttentionSelector,
)

Grid = tuple[int, int]


@dataclass(frozen=True)
class StagePlan:
    """One stage of a recipe in numbers.

    Attributes
    ----------
    kind, detail
        The stage's kind, and what it does here in words.
    grid_in, grid_out
        (H, W) of the visual tokens, None once a selector has left no grid.
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
    grid_in: Grid | None
    grid_out: Grid | None
    tokens_in: int
    tokens_out: int
    layer: int | None = None
    layers: tuple[int, ...] = ()


# Order ------------------------------------------------------------------------------------------------------


def _rank(stage: AnyStage) -> int:
    match stage:
        case DropLayers(component="encoder"):
            return 0
        case FrequencyFilter():
            return 1
        case Prune():
            return 2
        case _:
            return 3


def check_combination(recipe: Recipe, faults: Faults) -> None:
    """Refuse stages that cannot work together on any model."""
    _check_order(recipe, faults)
    filters = [number for number, stage in enumerate(recipe.stages) if isinstance(stage, FrequencyFilter)]
    prunes = [(number, stage) for number, stage in enumerate(recipe.stages) if isinstance(stage, Prune)]
    exits = [number for number, stage in enumerate(recipe.stages) if isinstance(stage, VisualExit)]
    for number, stage in prunes:
        if stage.positions != prunes[0][1].positions:
            problem = f"stages.{prunes[0][0]} says {prunes[0][1].positions}; one recipe has one convention"
            faults.add(number, "positions", problem)
        if filters and filters[0] < number and stage.selector.reads_encoder_grid:
            faults.add(
                number,
                "selector",
                f"{stage.selector.name} scores the encoder's own patches, and stages.{filters[0]} has "
                f"replaced those; after a frequency_filter these work: {_others('reads_encoder_grid')}",
            )
    for number in exits[1:]:
        faults.add(number, "", f"all visual tokens have left at stages.{exits[0]} already")
    _check_budget(recipe, faults)


def _check_budget(recipe: Recipe, faults: Faults) -> None:
    pruning = [(number, s) for number, s in enumerate(recipe.stages) if isinstance(s, Prune | PruneInDecoder)]
    if recipe.budget is not None and not pruning:
        faults.add_at(("budget",), "nothing to spend it: the recipe has neither a prune nor a prune_in_decoder stage")
    for number, stage in pruning:
        if stage.keep is None and recipe.budget is None:
            faults.add(number, "", "keep is missing; give a number of tokens, a fraction, or the recipe a budget")
        elif stage.keep is not None and recipe.budget is not None:
            faults.add(number, "keep", "is the recipe's budget to decide; leave one of the two out")


def _others(flag: str) -> str:
    """Name the selectors that do not have a property."""
    return ", ".join(name for name, entry in ENCODER_SELECTORS.items() if not getattr(entry, flag))


def _check_order(recipe: Recipe, faults: Faults) -> None:
    latest = 0
    for number, stage in enumerate(recipe.stages):
        before = recipe.stages[latest]
        if _rank(stage) >= _rank(before):
            latest = number
        elif isinstance(stage, FrequencyFilter) and isinstance(before, Prune):
            faults.add(number, "", f"needs a whole grid, and stages.{latest} has pruned it; put the filter first")
        else:
            what = "dropping encoder layers" if isinstance(stage, DropLayers) else stage.kind
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
    tokens = facts.visual_tokens
    grid: Grid | None = facts.grid
    keeps = budget_keeps(recipe, facts, depth, faults)
    cut_at = {number: layer for layer, number in depth.cuts.items()}
    plans = []
    for number, stage in enumerate(recipe.stages):
        tokens_in, grid_in = tokens, grid
        layer: int | None = None
        layers: tuple[int, ...] = ()
        match stage:
            case FrequencyFilter():
                if grid is not None:  # check_order has refused a filter behind a prune
                    grid = _filter_grid(stage, grid, number, faults)
                    tokens = grid[0] * grid[1]
                detail = f"{_sides(grid_in)} tokens to {_sides(grid)}"
            case Prune():
                tokens = _kept_tokens(keeps.get(number, stage.keep), tokens, number, faults)
                grid = None
                layers = _attention_layers(stage, facts, encoder_layers, number, faults)
                if stage.selector.needs_cls and not facts.encoder.has_cls:
                    problem = f"needs a CLS token, and this encoder has none; these work: {_others('needs_cls')}"
                    faults.add(number, "selector", f"{stage.selector.name} {problem}")
                if stage.selector.needs_frames:
                    problem = f"needs the frames of a video, and {facts.model_type} takes single images"
                    faults.add(number, "selector", f"{stage.selector.name} {problem}")
                detail = _selector_detail(stage, layers)
            case PruneInDecoder():
                tokens = _kept_tokens(keeps.get(number, stage.keep), tokens, number, faults)
                grid = None
                layer = cut_at.get(number)
                detail = f"before decoder layer {layer}, {_cut_detail(stage.selector)}"
            case VisualExit():
                layer = depth.exit
                detail = f"before decoder layer {layer}"
            case DropLayers():
                layers = encoder_dropped[number] if stage.component == "encoder" else depth.dropped[number]
                verb = "skipped by visual tokens" if stage.visual_only else "removed"
                detail = f"{stage.component} {_listing(layers)} {verb}"
        tokens_out = 0 if stage.kind == "visual_exit" else tokens
        plans.append(StagePlan(stage.kind, detail, grid_in, grid, tokens_in, tokens_out, layer, layers))
    return tuple(plans)


def _kept_tokens(keep: int | float | None, tokens: int, number: int, faults: Faults) -> int:
    if isinstance(keep, float):
        return max(1, round(keep * tokens))
    if keep is None:  # check_combination has refused a stage without a budget
        return tokens
    if keep > tokens:
        problem = f"cannot keep {keep} of {tokens} visual tokens; give at most {tokens} or a fraction"
        faults.add(number, "keep", problem)
        return tokens
    return keep


def _filter_grid(stage: FrequencyFilter, grid: Grid, number: int, faults: Faults) -> Grid:
    if stage.keep == "auto":
        return math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)
    total = grid[0] * grid[1]
    keep = max(1, round(stage.keep * total)) if isinstance(stage.keep, float) else stage.keep
    if keep > total:
        faults.add(number, "keep", f"cannot keep {keep} of {total} visual tokens; give at most {total} or a fraction")
        return grid
    found = smaller_grid(grid, keep)
    if found is None:
        below = next(k for k in range(keep, 0, -1) if smaller_grid(grid, k))
        above = next(k for k in range(keep, total + 1) if smaller_grid(grid, k))
        faults.add(
            number,
            "keep",
            f"{keep} tokens form no grid inside {_sides(grid)}; the nearest that do: "
            f"{below} ({_sides(smaller_grid(grid, below))}), {above} ({_sides(smaller_grid(grid, above))})",
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
    stage: Prune, facts: ModelFacts, encoder_layers: tuple[int, ...], number: int, faults: Faults
) -> tuple[int, ...]:
    selector = stage.selector
    if not isinstance(selector, ClsAttentionSelector):
        try:
            return selector.layers_read(facts.encoder, encoder_layers)
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


def _sides(grid: Grid | None) -> str:
    return f"{grid[0]}x{grid[1]}" if grid else "no grid"


def _listing(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers)) or 'none'}"


def _cut_detail(selector: AnyDecoderSelector) -> str:
    if isinstance(selector, RelevanceSelector):
        return f"relevance, {selector.checkpoint}"
    if not isinstance(selector, TextAttentionSelector):
        return selector.name
    positions = "" if selector.rope else ", without rotary positions"
    return f"text_attention of {selector.queries.replace('_', ' ')}{positions}"


def _selector_detail(stage: Prune, layers: tuple[int, ...]) -> str:
    match stage.selector:
        case ClsAttentionSelector():
            return f"cls_attention of encoder {_listing(layers)}"
        case RandomSelector(seed=seed):
            return f"random, seed {seed}"
        case LearnedSelector(checkpoint=checkpoint):
            return f"learned, {checkpoint}"
        case selector if layers:
            return f"{selector.name}, reading encoder {_listing(layers)}"
        case selector:
            return selector.name
