"""``vtc.compress``: a checkpoint and a recipe in, a compressed model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import Device, Dtype
from vtc.progress import Report, silent
from vtc.recipe import Recipe

if TYPE_CHECKING:
    from vtc.plan import TokenPlan
from vtc.api.arguments import as_placement, as_recipe


@dataclass(frozen=True)
class CompressResult:
    """What :func:`compress` made.

    Attributes
    ----------
    path : Path
        The directory written.
    plan : TokenPlan
        Tokens at every stage and decoder layer, FLOPs, KV bytes.
    recipe : Recipe
        With a value for everything that was left ``auto``.
    warnings : tuple of str
        What a training had to say against its own result: that it learned nothing.
    """

    path: Path
    plan: TokenPlan
    recipe: Recipe
    warnings: tuple[str, ...] = ()


def compress(
    model: str | Path,
    recipe: str | Path | Recipe,
    *,
    out: str | Path,
    data: str | Path | None = None,
    image_options: ImageOptions = ANY_IMAGE,
    samples: int = 64,
    seed: int = 0,
    retrain: bool = False,
    overrides: Sequence[str] = (),
    device: Device = "cpu",
    dtype: Dtype = "float32",
    progress: Report = silent,
) -> CompressResult:
    """Apply a recipe to a model, and calibrate or train what it leaves open.

    An interrupted run is taken up again by the same call.

    Parameters
    ----------
    model : str or Path
        ``reference``, or a checkpoint's directory.
    recipe : str, Path or Recipe
        Name of a shipped recipe, a YAML file, or a recipe in memory.
    out : str or Path
        Directory to write; replaced if it holds a compressed model.
    data : str, Path or None
        Images and questions to calibrate on: a directory with data.jsonl, or ``reference``. None takes ``reference``
        for the reference model.
    image_options : ImageOptions
        What images the model is to be made ready for.
    samples : int
        Number of samples to calibrate on.
    seed : int
        Draws the samples.
    retrain : bool
        Whether a part is trained even where one ships with the model.
    overrides : sequence of str
        Values of the recipe to change, such as ``stages.0.keep=64``.
    device : {"cpu", "cuda", "auto"}
        Where the model is calibrated and trained on; ``auto`` spreads what the GPU has no room for over the processor's
        memory and the disk (:class:`vtc.facts.placement.Placement`).
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Type of the weights while that is done; ``auto`` is the checkpoint's.
    progress : callable
        Called with what is being done, how much of it is done, and how much there is.

    Returns
    -------
    CompressResult

    Raises
    ------
    RecipeError
        If the recipe is wrong or does not fit the model; every fault is told before anything is loaded.
    ModelError
        If there is no such checkpoint, or its family is not supported.
    InputError
        If the recipe leaves something open and there are no data.

    Examples
    --------
    >>> import vtc
    >>> result = vtc.compress("reference", "fastervlm-25", out="out/compressed")
    >>> result.plan.visual_tokens_in, result.plan.keep
    (256, 64)
    """
    from vtc.calibrate.compress import Calibration
    from vtc.calibrate.compress import compress as run

    calibration = Calibration(None if data is None else str(data), samples, seed, retrain)
    placement = as_placement(device, dtype)
    done = run(model, as_recipe(recipe, overrides), Path(out), calibration, image_options, progress, placement)
    return CompressResult(Path(out), done.model.plan, done.recipe, done.warnings)
