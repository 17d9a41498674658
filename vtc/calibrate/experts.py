"""What is measured of a model's experts: statistics, with all visual tokens and those that a recipe keeps; skipping."""

from __future__ import annotations

from pathlib import Path

from vtc.calibrate.expert_use import expert_use
from vtc.calibrate.skipping import measure_skipping
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import load_compressed
from vtc.compressed.inspection import is_finished
from vtc.compressed.model import CompressedModel
from vtc.data.datasets import needed_data
from vtc.data.samples import samples_from
from vtc.errors import InputError
from vtc.experts.skipping import SkippingReport
from vtc.experts.statistics import ExpertStatistics
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import ON_CPU, Placement
from vtc.models import load_adapter, model_digest, read_facts, resolve_model
from vtc.models.base import VLMAdapter
from vtc.models.routers import check_mixture
from vtc.plan import plan
from vtc.progress import Report, silent
from vtc.recipe import NONE, Recipe


def measure_statistics(
    model: str | Path,
    recipe: Recipe,
    data: str | None,
    count: int,
    seed: int,
    image_options: ImageOptions = ANY_IMAGE,
    placement: Placement = ON_CPU,
    report: Report = silent,
) -> ExpertStatistics:
    """Measure who uses which expert of a checkpoint, or of a compressed model; see :func:`vtc.expert_statistics`."""
    if recipe.autos:
        raise InputError(
            f"recipe {recipe.name} leaves {recipe.autos[0]} open; compress the model with it, and give that"
        )
    if any(stage.needs_experts for stage in recipe.stages):
        raise InputError(
            f"recipe {recipe.name} leaves other experts than {model} has; compress the model with it, and give that"
        )
    if not is_finished(model):
        plan(recipe, read_facts(resolve_model(model), image_options))
    adapter, compressed, kept, name, digest = _opened(model, image_options, placement)
    recipe = kept or recipe
    source = needed_data(name, data)
    samples = samples_from(adapter, source, count, seed)
    uses = {"full": expert_use(apply_recipe(adapter, NONE), samples, report)}
    if recipe.stages:
        compressed = compressed or apply_recipe(adapter, recipe, model_digest=digest)
        uses["pruned"] = expert_use(compressed, samples, report)
    told = f"{len(samples)} questions of {source}, seed {seed}"
    return ExpertStatistics(digest, told, len(samples), uses, recipe.name if recipe.stages else "")


def _check_outline(outline: VLMAdapter, _: Recipe) -> None:
    check_mixture(outline)


def skipping_report(
    model: str | Path,
    share: float,
    data: str | None,
    count: int,
    seed: int,
    image_options: ImageOptions = ANY_IMAGE,
    placement: Placement = ON_CPU,
    report: Report = silent,
) -> SkippingReport:
    """Measure what a checkpoint, or a compressed model, loses by skipping; see :func:`vtc.expert_skipping`."""
    adapter, compressed, _, name, digest = _opened(model, image_options, placement)
    samples = samples_from(adapter, needed_data(name, data), count, seed)
    return measure_skipping(compressed or apply_recipe(adapter, NONE, model_digest=digest), samples, share, report)


def _opened(
    model: str | Path, image_options: ImageOptions, placement: Placement
) -> tuple[VLMAdapter, CompressedModel | None, Recipe | None, str, str]:
    """A mixture, its compressed model and recipe where it has one, its name and its digest."""
    if is_finished(model):
        compressed, recipe, origin = load_compressed(Path(model), placement=placement, first=_check_outline)
        return compressed.adapter, compressed, recipe, origin.name, origin.digest
    path = resolve_model(model)
    return load_adapter(path, image_options, placement, check_mixture), None, None, str(model), model_digest(path)
