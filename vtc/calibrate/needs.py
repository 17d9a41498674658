"""What ``vtc compress`` takes: the model, and whichever of calibrating and training takes most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vtc.calibrate.measuring import BATCH
from vtc.compressed.needs import costs_of, refuse
from vtc.data.datasets import count_items
from vtc.data.samples import ANSWER_TOKENS
from vtc.facts.placement import Placement
from vtc.models.base import VLMAdapter
from vtc.needs import Need
from vtc.plan import TokenPlan, plan
from vtc.plan.costs import Costs
from vtc.recipe import NONE, Recipe
from vtc.training.auto import left_open
from vtc.training.needs import training_need

if TYPE_CHECKING:
    from vtc.calibrate.compress import Calibration

COPIES = 3
"""Of a batch's logits: those of each step, and of the original and the candidate beside each other."""
LESS_TRAINING = "--dtype bfloat16, or a smaller batch of its training"
SMALL_FILES = 2**16
"""Bytes of recipe and manifest."""


def calibration_need(plan: TokenPlan, baseline: TokenPlan, costs: Costs, samples: int) -> Need:
    """What choosing values takes: what the original says of all samples is kept. How many are tried, only data say."""
    prompts, scored = min(BATCH, samples), ANSWER_TOKENS + 1
    said = 4 * samples * scored * costs.facts.decoder.vocab
    asked = max(costs.asked(one, prompts, COPIES * scored) for one in (plan, baseline))
    return costs.more(costs.loaded(), said + asked, None)


def training_needs(
    recipe: Recipe, plan: TokenPlan, baseline: TokenPlan, costs: Costs, items: int | None = None
) -> dict[int, Need]:
    """What each training takes that a recipe leaves open, by the number of its stage, with so many questions."""
    return {stage: training_need(recipe, stage, plan, baseline, costs, items) for stage in left_open(recipe)}


def compress_need(recipe: Recipe, plan: TokenPlan, baseline: TokenPlan, costs: Costs, samples: int = 0) -> Need:
    """What a recipe takes to be applied, with what is calibrated on `samples`, and without what is trained.

    Parameters
    ----------
    recipe : Recipe
    plan, baseline : TokenPlan
        With the recipe, and without any.
    costs : Costs
    samples : int
        0 where nothing is calibrated.
    """
    need = calibration_need(plan, baseline, costs, samples) if samples else costs.loaded()
    parts = 4 * sum(stage.parameters for stage in plan.stages)
    return costs.more(need, parts, disk=2 * parts + SMALL_FILES)


def check_room(
    outline: VLMAdapter, recipe: Recipe, out: Path, calibration: Calibration, placement: Placement, *, trains: bool
) -> None:
    """Refuse to compress where there is no room for it.

    Parameters
    ----------
    outline : VLMAdapter
        Without the numbers of its weights.
    recipe : Recipe
    out : Path
        The directory to write.
    calibration : Calibration
    placement : Placement
    trains : bool
        Whether parts that are left open are trained, and do not come with the model.

    Raises
    ------
    OutOfResources
    """
    made, baseline, costs = (
        plan(recipe, outline.facts),
        plan(NONE, outline.facts),
        costs_of(outline, placement, recipe=recipe),
    )
    items = None if calibration.data is None or not recipe.autos else count_items(calibration.data)
    samples = 0
    if recipe.measured:
        samples = calibration.samples if items is None else min(items, calibration.samples)
    need = compress_need(recipe, made, baseline, costs, samples)
    refuse(f"compressing {outline.path}", need, placement, out=out)
    for stage, one in training_needs(recipe, made, baseline, costs, items).items() if trains else ():
        refuse(f"training stages.{stage} of {recipe.name}", one, placement, LESS_TRAINING)
