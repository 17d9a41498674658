"""A compressed model on disk: the resolved recipe and what was trained or calibrated, beside a reference to the base
model.

The base model's weights are not copied; their digest is kept, and a base that has changed is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtc.artifact import MANIFEST, publish, read_manifest, verify_files
from vtc.compressed.build import apply_recipe, load_state
from vtc.compressed.model import CompressedModel
from vtc.compressed.needs import BeforeLoading
from vtc.errors import BundleError, ModelError, one_line
from vtc.experts.placement import ExpertMap
from vtc.experts.placement_files import save_for_sglang, save_placement, to_json
from vtc.facts.layout import ImageOptions, image_options_of
from vtc.facts.placement import ON_CPU, Placement
from vtc.finite import first_not_finite
from vtc.machine import machine_fault
from vtc.models import load_adapter, model_digest, resolve_model
from vtc.models.base import VLMAdapter
from vtc.origin import check_origin
from vtc.recipe import Recipe, load_recipe
from vtc.runtime.versions import vtc_version
from vtc.selectors.trained import log_path
from vtc.staging import Work

KIND = "compressed"
SCHEMA = 3
"""Until schema 2, `image_options` was called `serving`, and `handoffs` in the state `entrances`."""

RECIPE, STATE = FILES = ("recipe.yaml", "state.safetensors")
PLACEMENTS = {"placement.json": save_placement, "placement_sglang.json": save_for_sglang}
"""Files of a placement of experts, where the recipe asks for one."""


@dataclass(frozen=True)
class Origin:
    """The base model of a compressed one.

    Attributes
    ----------
    name : str
        What the user called it: ``reference`` or an absolute path.
    digest : str
        SHA-256 of every file that it is loaded from.
    """

    name: str
    digest: str


def save_compressed(
    work: Work | Path,
    out: Path,
    model: CompressedModel,
    recipe: Recipe,
    origin: Origin,
    calibration: dict[str, Any],
    warnings: Sequence[str] = (),
    placement: ExpertMap | None = None,
) -> Path:
    """Write a compressed model, whole or not at all.

    Parameters
    ----------
    work : Work or Path
        As for :func:`vtc.artifact.publish`. It holds the trained parts that the recipe names.
    out : Path
    model : CompressedModel
    recipe : Recipe
        Resolved: nothing in it is ``auto``.
    origin : Origin
    calibration : dict
        What was measured to choose values, for the record.
    warnings : sequence of str
        What whoever uses the model should be told (see :func:`vtc.compressed.inspection.warnings_of`).
    placement : ExpertMap or None
        Where the experts of a mixture are to live.

    Returns
    -------
    Path
        The directory written.
    """
    directory = work.path if isinstance(work, Work) else work
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    save_file(model.trained.state_dict(), directory / STATE, metadata={"model_sha256": origin.digest})
    parts = [directory / entry.checkpoint for _, _, entry in recipe.trained()]
    files = [directory / name for name in FILES] + [file for part in parts for file in (part, log_path(part))]
    manifest = {
        "kind": KIND,
        "schema": SCHEMA,
        "vtc_version": vtc_version(),
        "model": {"name": origin.name, "family": model.adapter.family, "sha256": origin.digest},
        "recipe_digest": recipe.digest,
        "plan": model.plan.to_dict(),
        "image_options": asdict(model.adapter.wanted),
        "calibration": calibration,
        "warnings": list(warnings),
    }
    if placement is not None:
        manifest["placement"] = to_json(placement)
        for name, write in PLACEMENTS.items():
            write(directory / name, placement)
            files.append(directory / name)
    return publish(work, out, manifest, [file.relative_to(directory).as_posix() for file in files if file.is_file()])


def load_compressed(
    path: Path, base: str | None = None, placement: Placement = ON_CPU, first: BeforeLoading | None = None
) -> tuple[CompressedModel, Recipe, Origin]:
    """Load a compressed model.

    Parameters
    ----------
    path : Path
    base : str or None
        Where the base model is now; None: where it was.
    placement : Placement
    first : callable or None
        Called before weights are read.

    Returns
    -------
    CompressedModel, Recipe, Origin

    Raises
    ------
    BundleError
        If the directory is incomplete or changed.
    ModelError
        If the base model is gone or is not the one that was compressed.
    """
    manifest, recipe, origin = read_compressed(path)
    origin = replace(origin, name=base or origin.name)
    try:
        checkpoint = resolve_model(origin.name)
    except ModelError as error:
        raise ModelError(f"{error}; give the base model's place with --model") from None
    if model_digest(checkpoint) != origin.digest:
        raise ModelError(
            f"{checkpoint}: is not the model that {path} was made from (its contents differ); compress again"
        )

    def before(outline: VLMAdapter) -> None:
        if first is not None:
            first(outline, recipe)

    adapter = load_adapter(checkpoint, image_options_of(manifest), placement, before)
    model = apply_recipe(adapter, recipe, from_state=True)
    state = {re.sub(r"^entrances\b", "handoffs", name): value for name, value in _state(path).items()}
    try:
        load_state(model, state)
    except RuntimeError as error:
        words = " ".join(str(error).split())[:200]
        raise BundleError(f"{path / STATE}: is not of this model ({words}); compress again") from None
    return model, recipe, origin


def _state(path: Path) -> dict[str, Tensor]:
    file = path / STATE
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise machine_fault(error, file) or BundleError(
            f"{file}: is not of this model ({one_line(error)}); compress again"
        ) from None
    if (name := first_not_finite(state.items())) is not None:
        raise BundleError(f"{file}: {name} is not all finite numbers; compress again")
    return state


def read_compressed(path: Path) -> tuple[dict[str, Any], Recipe, Origin]:
    """Read what a compressed model says of itself, once its files are verified.

    Returns
    -------
    manifest : dict
    recipe : Recipe
    origin : Origin

    Raises
    ------
    BundleError
        If the directory is incomplete or changed.
    """
    manifest = read_manifest(path, KIND, SCHEMA)
    verify_files(path, manifest.get("files"))
    check_origin(manifest, path / MANIFEST)
    if not {RECIPE, STATE} <= set(manifest["files"]):
        raise BundleError(f"{path / MANIFEST}: lists no {RECIPE} or no {STATE}; compress again")
    recipe = load_recipe(path / RECIPE)
    if recipe.digest != manifest["recipe_digest"]:
        raise BundleError(f"{path}: {RECIPE} does not match the manifest; compress again")
    return manifest, recipe, Origin(manifest["model"]["name"], manifest["model"]["sha256"])


def for_images(model: CompressedModel, recipe: Recipe, image_options: ImageOptions) -> CompressedModel:
    """The same compressed model for other images, sharing its weights.

    Raises
    ------
    InputError
        If its family cannot serve those.
    RecipeError
        If the recipe does not fit what becomes of them.
    """
    other = model.adapter.with_image_options(image_options)
    other.facts = replace(other.facts, decoder=model.adapter.facts.decoder)
    return _sharing(model, other, recipe)


def served(model: CompressedModel, recipe: Recipe, image_options: Sequence[ImageOptions] = ()) -> list[CompressedModel]:
    """What one bundle serves: a model for each layout of images, and those at each of the recipe's budgets.

    Parameters
    ----------
    model : CompressedModel
    recipe : Recipe
    image_options : sequence of ImageOptions
        The layouts, the default one first; none is the model's own.

    Returns
    -------
    list of CompressedModel
        All layouts at the largest budget first.
    """
    layouts = [for_images(model, recipe, wanted) for wanted in image_options] or [model]
    if not recipe.budgets:
        return layouts
    each = [at_budgets(layout, recipe) for layout in layouts]
    return [models[keep] for keep in reversed(recipe.budgets) for models in each]


def at_budgets(model: CompressedModel, recipe: Recipe) -> dict[int, CompressedModel]:
    """A compressed model at each budget of its recipe, ascending, sharing its weights; none where it has one ``keep``.

    The largest is the model itself, which :func:`vtc.compressed.build.apply_recipe` makes at that budget.
    """
    smaller = {keep: _sharing(model, model.adapter, recipe.at_budget(keep)) for keep in recipe.budgets[:-1]}
    return smaller | dict.fromkeys(recipe.budgets[-1:], model)


def _sharing(model: CompressedModel, adapter: VLMAdapter, recipe: Recipe) -> CompressedModel:
    """A model of another layout or budget with the weights of `model`."""
    other = apply_recipe(adapter, recipe, from_state=True, unchanged=model.base_facts.decoder)
    other.trained.load_state_dict(model.trained.state_dict(), assign=True)
    return other
