"""Experts of a mixture: ``vtc.expert_statistics``, ``vtc.expert_skipping`` and ``vtc.place_experts``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.api.arguments import as_placement, as_recipe
from vtc.errors import InputError
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import Device, Dtype
from vtc.progress import Report, silent
from vtc.recipe import Recipe
from vtc.recipe.experts import ExpertPlacement, Homes, Method

if TYPE_CHECKING:
    from vtc.experts.placement import ExpertMap
    from vtc.experts.skipping import SkippingReport
    from vtc.experts.statistics import ExpertStatistics
    from vtc.experts.traffic import Replay


@dataclass(frozen=True)
class PlacedExperts:
    """What :func:`place_experts` made.

    Attributes
    ----------
    placement : ExpertMap
        From all prompts of the statistics.
    compared : tuple of (str, str, Replay)
        Placement, homes, and what its traffic and load are: placed by half of the prompts, counted on the others.
    """

    placement: ExpertMap
    compared: tuple[tuple[str, Homes, Replay], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "kind": "placement",
            "method": self.placement.method,
            "physical_to_logical_map": self.placement.expert_of_slot.tolist(),
            "compared": [{"placement": name, "homes": homes, **one.to_json()} for name, homes, one in self.compared],
        }


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
    >>> found = vtc.expert_statistics("reference-moe", samples=4, out="experts.safetensors")
    >>> found.use().experts, found.use().active
    (8, 2)
    """
    from vtc.calibrate.experts import measure_statistics
    from vtc.compressed.inspection import is_finished
    from vtc.experts.statistics import save_statistics
    from vtc.writing import check_place

    check_place(None if out is None else Path(out))
    if is_finished(model) and (recipe is not None or overrides or image_options != ANY_IMAGE):
        raise InputError(f"{model} was made with a recipe; measure the model it was made from to try another")
    wanted = as_recipe("none" if recipe is None else recipe, overrides)
    questions = (None if data is None else str(data), samples, seed)
    found = measure_statistics(model, wanted, *questions, image_options, as_placement(device, dtype), progress)
    if out is not None:
        save_statistics(Path(out), found)
    return found


def expert_skipping(
    model: str | Path,
    share: float,
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    samples: int = 64,
    seed: int = 0,
    image_options: ImageOptions = ANY_IMAGE,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    progress: Report = silent,
) -> SkippingReport:
    """Measure what a mixture would lose if text and visual tokens skipped experts that count for little (MoDES).

    No exported graph skips, and no recipe does: which experts a token skips is data, and shapes may not depend on that.

    Parameters
    ----------
    model : str or Path
        As for :func:`expert_statistics`; one whose decoder layers all see the same tokens.
    share : float
        Share of expert calls to skip, between 0 and 1.
    out : str, Path or None
        File to write, JSON.
    data, samples, seed, image_options, device, dtype, progress
        As for :func:`expert_statistics`. Thresholds are found on half of the questions, and measured on the others.

    Returns
    -------
    SkippingReport

    Raises
    ------
    InputError
        If the model is dense, or visual tokens leave inside its decoder, or nothing says what to measure on.
    ModelError
        If there is no such model.

    Examples
    --------
    >>> import vtc
    >>> found = vtc.expert_skipping("reference-moe", 0.3, samples=2)
    >>> found.skipped.all > 0.2
    True
    """
    from vtc.calibrate.experts import skipping_report
    from vtc.compressed.inspection import is_finished
    from vtc.writing import check_place, write_whole

    check_place(None if out is None else Path(out))
    if not 0 < share < 1:
        raise InputError(f"cannot skip a share of {share:g} of the expert calls; give one between 0 and 1, such as 0.3")
    if is_finished(model) and image_options != ANY_IMAGE:
        raise InputError(f"{model} was made for its own images; leave image options out")
    questions = (None if data is None else str(data), samples, seed)
    found = skipping_report(model, share, *questions, image_options, as_placement(device, dtype), progress)
    if out is not None:
        write_whole(Path(out), (json.dumps(found.to_dict(), indent=2) + "\n").encode())
    return found


def statistics_of(model: str | Path, file: str | Path) -> ExpertStatistics:
    """Read expert statistics, and make sure that they are of a model.

    Raises
    ------
    InputError
        If there is no such file, or it is of another model.
    """
    from vtc.compressed.inspection import digest_of
    from vtc.experts.statistics import check_model, load_statistics

    found = load_statistics(Path(file))
    check_model(found, digest_of(model), Path(file))
    return found


def place_experts(
    model: str | Path,
    statistics: str | Path,
    devices: int,
    *,
    placement: Method = "modality",
    homes: Homes = "sample",
    copies: int = 0,
    tolerance: float = 0.05,
    seed: int = 0,
    tokens: str = "full",
    given: str | Path | None = None,
    out: str | Path | None = None,
    written: str = "vtc",
) -> PlacedExperts:
    """Place the experts of a mixture on devices that share them (expert parallelism), and compare all methods.

    Parameters
    ----------
    model : str or Path
        As for :func:`expert_statistics`.
    statistics : str or Path
        File that :func:`expert_statistics` wrote.
    devices : int
        Divides the experts of a layer with their copies.
    placement, homes, copies, tolerance, seed
        As the ``experts`` section of a recipe has them.
    tokens : {"full", "pruned"}
        Whose use counts: that of all visual tokens, or of those that a recipe keeps.
    given : str, Path or None
        File of a placement to compare, too.
    out : str, Path or None
        File to write.
    written : {"vtc", "sglang", "tensorrt-llm", "vllm"}
        For whom it is written.

    Returns
    -------
    PlacedExperts

    Raises
    ------
    InputError
        If statistics or the given placement are of another model, or the devices do not divide the experts.

    Examples
    --------
    >>> import vtc
    >>> found = vtc.place_experts("reference-moe", "experts.safetensors", devices=2, homes="modality")
    >>> found.placement.devices, len(found.compared)
    (2, 12)
    """
    from pydantic import ValidationError

    from vtc.experts.placement_files import WRITERS, load_placement
    from vtc.experts.placing import compare, halves, homes_of, place
    from vtc.experts.traffic import replay
    from vtc.writing import check_place

    check_place(None if out is None else Path(out), Path(statistics))
    found = statistics_of(model, statistics)
    use = found.use(tokens)
    try:
        wanted = ExpertPlacement(
            devices=devices, placement=placement, homes=homes, copies=copies, tolerance=tolerance, seed=seed
        )
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    made = place(use, wanted, found.model)
    rows: list[tuple[str, Homes, Replay]] = list(compare(use, wanted))
    if given is not None:
        file = Path(given)
        own = load_placement(file)
        own.check_model(found.model, use.layers, use.experts, file)
        if own.devices != devices:
            raise InputError(f"{file}: a placement for {own.devices} devices; give --devices {own.devices}")
        counted = halves(use)[1]
        rows.append((file.name, homes, replay(counted, own, homes_of(counted, wanted))))
    if out is not None:
        WRITERS[written](Path(out), made)
    return PlacedExperts(made, tuple(rows))
