"""``vtc.expert_statistics``: who uses which expert of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.api.arguments import as_placement, as_recipe
from vtc.errors import InputError
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import Device, Dtype
from vtc.progress import Report, silent
from vtc.recipe import Recipe

if TYPE_CHECKING:
    from vtc.experts.statistics import ExpertStatistics


def expert_statistics(
    model: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    samples: int = 64,
    seed: int = 0,
    image_options: ImageOptions = ANY_IMAGE,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    progress: Report = silent,
) -> ExpertStatistics:
    """Measure which modality uses which expert: with all visual tokens, and with those that a recipe keeps.

    Parameters
    ----------
    model : str or Path
        ``reference-moe``, a checkpoint's directory, or that of a compressed model, which has a recipe of its own.
    recipe : str, Path or Recipe, or None
        For a checkpoint: measure with it too. It leaves nothing to calibration; compress the model otherwise, and
        measure that.
    out : str, Path or None
        File to write, safetensors.
    overrides : sequence of str
        Values of the recipe to change.
    data : str, Path or None
        Images and questions: a directory with data.jsonl, or ``reference``. None takes ``reference`` for models that
        ship with vtc.
    samples, seed : int
        How many questions, and what draws them.
    image_options : ImageOptions
        What images the model is to be made ready for.
    device, dtype : str
        As for :func:`compress`.
    progress : callable

    Returns
    -------
    ExpertStatistics

    Raises
    ------
    InputError
        If the model is dense, or nothing says what to measure on.
    RecipeError
        If the recipe does not fit the model.
    ModelError
        If there is no such model.

    Examples
    --------
    >>> import vtc
    >>> found = vtc.expert_statistics("reference-moe", samples=4)
    >>> found.use().experts, found.use().active
    (8, 2)
    """
    from vtc.calibrate.experts import measure_statistics
    from vtc.compressed.inspection import is_finished
    from vtc.experts.statistics import save_statistics

    if is_finished(model) and (recipe is not None or overrides or image_options != ANY_IMAGE):
        raise InputError(f"{model} was made with a recipe; measure the model it was made from to try another")
    wanted = as_recipe("none" if recipe is None else recipe, overrides)
    questions = (None if data is None else str(data), samples, seed)
    found = measure_statistics(model, wanted, *questions, image_options, as_placement(device, dtype), progress)
    if out is not None:
        save_statistics(Path(out), found)
    return found
