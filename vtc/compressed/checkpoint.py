"""A compressed model on disk: the resolved recipe and what was trained or calibrated, beside a reference to the base
model.

The base model's weights are not copied; their digest is kept, and a base that has changed is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from vtc.artifact import publish, read_manifest, verify_files
from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.errors import BundleError, ModelError
from vtc.facts.layout import ImageOptions, image_options_of
from vtc.models import load_adapter, model_digest, resolve_model
from vtc.recipe import Recipe, load_recipe

KIND = "compressed"
SCHEMA = 3
"""Until schema 2, `image_options` was called `serving`, and `handoffs` in the state `entrances`."""


@dataclass(frozen=True)
class Origin:
    """The base model of a compressed one.

    Attributes
    ----------
    name : str
        What the user called it: ``reference`` or an absolute path.
    digest : str
        SHA-256 of its configuration and weights.
    """

    name: str
    digest: str


def save_compressed(
    work: Path,
    out: Path,
    model: CompressedModel,
    recipe: Recipe,
    origin: Origin,
    calibration: dict[str, Any],
    warnings: Sequence[str] = (),
) -> Path:
    """Write a compressed model, whole or not at all.

    Parameters
    ----------
    work : Path
        The staging directory of `out`.
    out : Path
    model : CompressedModel
    recipe : Recipe
        Resolved: nothing in it is ``auto``.
    origin : Origin
    calibration : dict
        What was measured to choose values, for the record.
    warnings : sequence of str
        What whoever uses the model should be told (see :func:`vtc.compressed.inspection.warnings_of`).

    Returns
    -------
    Path
        The directory written.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    save_file(model.trained.state_dict(), work / "state.safetensors", metadata={"model_sha256": origin.digest})
    manifest = {
        "kind": KIND,
        "schema": SCHEMA,
        "vtc_version": version("vtc"),
        "model": {"name": origin.name, "family": model.adapter.family, "sha256": origin.digest},
        "recipe_digest": recipe.digest,
        "plan": model.plan.to_dict(),
        "image_options": asdict(model.adapter.wanted),
        "calibration": calibration,
        "warnings": list(warnings),
    }
    return publish(work, out, manifest)


def load_compressed(path: Path, base: str | None = None) -> tuple[CompressedModel, Recipe, Origin]:
    """Load a compressed model.

    Parameters
    ----------
    path : Path
    base : str or None
        Where the base model is now; None: where it was.

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
    manifest = read_manifest(path, KIND, SCHEMA)
    verify_files(path, manifest["files"])
    recipe = load_recipe(path / "recipe.yaml")
    if recipe.digest != manifest["recipe_digest"]:
        raise BundleError(f"{path}: recipe.yaml does not match the manifest; compress again")
    origin = Origin(base or manifest["model"]["name"], manifest["model"]["sha256"])
    try:
        checkpoint = resolve_model(origin.name)
    except ModelError as error:
        raise ModelError(f"{error}; give the base model's place with --model") from None
    if model_digest(checkpoint) != origin.digest:
        raise ModelError(
            f"{checkpoint}: is not the model that {path} was made from (its contents differ); compress again"
        )
    model = apply_recipe(load_adapter(checkpoint, image_options_of(manifest)), recipe, from_state=True)
    state = load_file(path / "state.safetensors")
    model.trained.load_state_dict({re.sub(r"^entrances\b", "handoffs", name): value for name, value in state.items()})
    return model, recipe, origin


def for_images(model: CompressedModel, recipe: Recipe, image_options: ImageOptions) -> CompressedModel:
    """The same compressed model for other images, sharing its weights.

    Raises
    ------
    InputError
        If its family cannot serve those.
    RecipeError
        If the recipe does not fit what becomes of them.
    """
    other = apply_recipe(model.adapter.with_image_options(image_options), recipe, from_state=True)
    other.trained.load_state_dict(model.trained.state_dict())
    return other
