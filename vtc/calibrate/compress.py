"""From a checkpoint and a recipe to a compressed model, with what the recipe leaves open measured or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vtc.artifact import check_output
from vtc.calibrate.calibrator import Calibrator, PartSource, needs_data
from vtc.calibrate.measurements import Measurements
from vtc.calibrate.needs import check_room
from vtc.compressed.build import apply_recipe, check_questions
from vtc.compressed.checkpoint import FILES, PLACEMENTS, Origin, save_compressed
from vtc.compressed.model import CompressedModel
from vtc.data.datasets import data_for
from vtc.data.samples import samples_from
from vtc.experts.placement import ExpertMap
from vtc.experts.placing import place
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import ON_CPU, Placement
from vtc.models import check_model, load_adapter, model_digest, read_facts, resolve_model
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.progress import Report, silent
from vtc.recipe import Recipe
from vtc.reference import is_shipped
from vtc.selectors.trained import read_metadata
from vtc.staging import open_work
from vtc.training.auto import AutoTrained, part_names
from vtc.training.trainers import check_trainable
from vtc.training.verdict import WARNING

MEASUREMENTS = ".measurements-"
"""How the names of files begin that keep measurements for a rerun."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, loaded.

    Attributes
    ----------
    origin : Origin
    adapter : VLMAdapter
    """

    origin: Origin
    adapter: VLMAdapter


@dataclass(frozen=True)
class Calibration:
    """What to measure and train on.

    Attributes
    ----------
    data : str or None
        ``reference``, or a directory with data.jsonl. None measures on noise and trains nothing.
    samples : int
        Number of samples to measure on.
    seed : int
        Draws the samples.
    retrain : bool
        Whether a part is trained even where one ships with the model.
    """

    data: str | None = None
    samples: int = 64
    seed: int = 0
    retrain: bool = False


@dataclass(frozen=True)
class Completed:
    """A compressed model.

    Attributes
    ----------
    model : CompressedModel
    recipe : Recipe
        Without ``auto`` values.
    measurements : dict
        What was measured to choose them.
    warnings : tuple of str
        What a training had to say against its own result.
    placement : ExpertMap or None
        Where the experts of a mixture are to live, where the recipe asks.
    """

    model: CompressedModel
    recipe: Recipe
    measurements: dict[str, Any]
    warnings: tuple[str, ...] = ()
    placement: ExpertMap | None = None


def load_checkpoint(
    model: str | Path,
    image_options: ImageOptions = ANY_IMAGE,
    placement: Placement = ON_CPU,
    first: Callable[[VLMAdapter], None] | None = None,
) -> Checkpoint:
    """Load a checkpoint for the images that it is to serve.

    Parameters
    ----------
    model : str or Path
        ``reference`` or a directory.
    image_options : ImageOptions
    placement : Placement
    first : callable or None
        As for :func:`vtc.models.load_adapter`.

    Returns
    -------
    Checkpoint

    Raises
    ------
    ModelError
        If there is no such checkpoint, or its family is not supported.
    """
    path = resolve_model(model)
    name = str(model) if is_shipped(model) else str(path.resolve())
    return Checkpoint(Origin(name, model_digest(path)), load_adapter(path, image_options, placement, first))


def trained_parts(
    checkpoint: Checkpoint, directory: Path, calibration: Calibration, progress: Report = silent
) -> AutoTrained:
    """Make the source of trained parts: those that ship with the model where they fit, newly trained ones elsewhere.

    Parameters
    ----------
    checkpoint : Checkpoint
    directory : Path
        Where they are put; training that was interrupted there goes on.
    calibration : Calibration
    progress : callable
    """
    digest, data, retrain = checkpoint.origin.digest, calibration.data, calibration.retrain
    return AutoTrained(checkpoint.adapter, digest, directory, data, retrain, progress)


def complete(
    checkpoint: Checkpoint,
    recipe: Recipe,
    work: Path,
    calibration: Calibration = Calibration(),
    progress: Report = silent,
    parts: PartSource | None = None,
) -> Completed:
    """Choose and train what a recipe leaves open, and apply it.

    Parameters
    ----------
    checkpoint : Checkpoint
    recipe : Recipe
    work : Path
        An existing directory for trained parts and measurements; what an earlier run left there is taken up again.
    calibration : Calibration
    progress : callable
    parts : callable or None
        Another source of trained parts than :func:`trained_parts`.

    Returns
    -------
    Completed

    Raises
    ------
    InputError
        If a part has to be trained and there are no data.
    RecipeError
        If the recipe does not fit the model.
    """
    adapter, digest = checkpoint.adapter, checkpoint.origin.digest
    if parts is None:
        parts = trained_parts(checkpoint, work, calibration, progress)
        parts.discard_others(recipe)
    samples = samples_from(adapter, calibration.data, calibration.samples, calibration.seed) if recipe.measured else []
    measurements = Measurements(work / f"{MEASUREMENTS}{digest[:12]}-{calibration.samples}-{calibration.seed}.json")
    calibrator = Calibrator(adapter, samples, measurements, digest, progress, parts)
    resolved = calibrator.resolve(recipe)
    files = [resolved.checkpoint(number) for number, *_ in resolved.trained()]
    warnings = tuple(text for text in (read_metadata(file).get(WARNING) for file in files) if text)
    placement = None
    if resolved.experts is not None:
        placement = place(calibrator.measuring.experts(resolved), resolved.experts, digest)
    model = apply_recipe(adapter, resolved, model_digest=digest)
    return Completed(model, resolved, measurements.values, warnings, placement)


def compress(
    model: str | Path,
    recipe: Recipe,
    out: Path,
    calibration: Calibration = Calibration(),
    image_options: ImageOptions = ANY_IMAGE,
    progress: Report = silent,
    placement: Placement = ON_CPU,
) -> Completed:
    """Write a compressed model, whole or not at all; an interrupted run is taken up again by the same call.

    Parameters
    ----------
    model : str or Path
        ``reference`` or a directory.
    recipe : Recipe
    out : Path
        Directory to write.
    calibration : Calibration
        Without data, the reference model is calibrated on its own scenes.
    image_options : ImageOptions
    progress : callable
    placement : Placement

    Returns
    -------
    Completed

    Raises
    ------
    InputError
        If the recipe leaves something open and there are no data.
    RecipeError
        If the recipe does not fit the model; every fault is told before anything is loaded.
    BundleError
        If `out` holds something else than a compressed model.
    """
    path = resolve_model(model)
    facts = read_facts(path, image_options)
    plan(recipe, facts)
    check_trainable(recipe, facts)
    outline = check_model(path, image_options).outline
    check_questions(outline, recipe)
    check_output(out, "compressed")
    data = data_for(str(model), calibration.data)
    if (recipe.autos or recipe.measured) and data is None:
        raise needs_data(recipe)
    shipped = str(model) == "reference" and not calibration.retrain
    calibration = replace(calibration, data=data)
    check_room(outline, recipe, out, calibration, placement, trains=not shipped)
    checkpoint = load_checkpoint(model, image_options, placement)
    with open_work(out, "vtc compress") as work:
        work.claim(*FILES, *PLACEMENTS, f"{MEASUREMENTS}*", *part_names(recipe))
        completed = complete(checkpoint, recipe, work.path, calibration, progress)
        found = completed.model, completed.recipe, checkpoint.origin, completed.measurements, completed.warnings
        save_compressed(work, out, *found, completed.placement)
    return completed
