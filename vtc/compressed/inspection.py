"""What a recipe comes to on a model, before any work, or what a finished one came to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.artifact import MANIFEST, MAX_MANIFEST_BYTES, artifact_kind, read_manifest
from vtc.errors import BundleError
from vtc.facts.layout import ANY_IMAGE, ImageOptions, image_options_of
from vtc.files import read_json
from vtc.needs import Need
from vtc.origin import check_origin
from vtc.plan import TokenPlan, plan
from vtc.plan.stored import budget_plans, plans_of
from vtc.recipe import NONE, Recipe
from vtc.reference import is_shipped

if TYPE_CHECKING:
    from vtc.bundle.manifest import Manifest
    from vtc.models.base import VLMAdapter

TEXT_TOKENS = 32
"""Tokens of a prompt beside the image's, where nobody says."""
Needs = Callable[["VLMAdapter", Recipe, TokenPlan, TokenPlan], Mapping[str, Need]]
"""Called with a model without the numbers of its weights, a recipe, its plan, and the plan of none."""


@dataclass(frozen=True)
class Inspection:
    """A plan beside the one of the model as it is.

    Attributes
    ----------
    model, family : str
        The checkpoint's name, and its model_type.
    recipe, digest : str
        The recipe's name, and its sha256.
    plan, baseline : TokenPlan
        With the recipe, at the largest of its budgets where it has several, and without any.
    budgets : mapping of int to TokenPlan
        With the recipe at each of its budgets, where it has several.
    needs : mapping of str to Need
        What each verb takes of this machine; empty where there are no weights.
    """

    model: str
    family: str
    recipe: str
    digest: str
    plan: TokenPlan
    baseline: TokenPlan
    budgets: Mapping[int, TokenPlan] = field(default_factory=dict)
    needs: Mapping[str, Need] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        each = {str(keep): replace(one, smaller=()).to_dict() for keep, one in self.budgets.items()}
        return {
            "kind": "inspect",
            "model": self.model,
            "family": self.family,
            "recipe": self.recipe,
            "recipe_digest": self.digest,
            "plan": replace(self.plan, smaller=()).to_dict(),
            "baseline": self.baseline.to_dict(),
            **({"budgets": each} if each else {}),
            "needs": {verb: need.to_dict() for verb, need in self.needs.items()},
        }


def is_finished(target: str | Path) -> bool:
    """Tell whether a target is a bundle or a compressed model, whose recipe is settled."""
    return not is_shipped(target) and (Path(target) / MANIFEST).is_file()


def digest_of(target: str | Path) -> str:
    """Digest of a checkpoint, or of the one that a compressed model or a bundle was made from.

    Raises
    ------
    ModelError
        If there is no such checkpoint.
    BundleError
        If it is incomplete or changed.
    """
    from vtc.models import model_digest, resolve_model

    if not is_finished(target):
        return model_digest(resolve_model(target))
    directory = Path(target)
    manifest = read_manifest(directory, artifact_kind(directory) or "bundle", sys.maxsize)
    check_origin(manifest, directory / MANIFEST)
    return str(manifest["model"]["sha256"])


def planned(
    model: str | Path,
    recipe: Recipe,
    text_tokens: int = TEXT_TOKENS,
    image_options: ImageOptions = ANY_IMAGE,
    needs: Needs | None = None,
) -> Inspection:
    """Plan a recipe on a checkpoint, whose weights are not read.

    Parameters
    ----------
    model : str or Path
        ``reference`` or a directory.
    recipe : Recipe
    text_tokens : int
    image_options : ImageOptions
    needs : callable or None
        Finds what verbs take of a model of which there are weights.

    Returns
    -------
    Inspection

    Raises
    ------
    ModelError
        If there is no such checkpoint, or its family is not supported.
    RecipeError
        If the recipe does not fit the model.
    """
    from vtc.models import check_model, holds_weights, read_facts, resolve_model

    path = resolve_model(model)
    # A plan needs no weights, but those that are there must be usable.
    outline = check_model(path, image_options).outline if holds_weights(path) else None
    facts = read_facts(path, image_options)
    made, baseline = plan(recipe, facts, text_tokens=text_tokens), plan(NONE, facts, text_tokens=text_tokens)
    return Inspection(
        model=str(model),
        family=facts.family,
        recipe=recipe.name,
        digest=recipe.digest,
        plan=made,
        baseline=baseline,
        budgets=dict(zip(recipe.budgets, (*made.smaller, made), strict=True)) if recipe.budgets else {},
        needs={} if needs is None or outline is None else needs(outline, recipe, made, baseline),
    )


def finished(
    directory: Path, needs: Needs | None = None, of_bundle: Callable[[Manifest], Mapping[str, Need]] | None = None
) -> Inspection:
    """Read the plans of a bundle or a compressed model, once its files are verified.

    Parameters
    ----------
    directory : Path
    needs : callable or None
        As for :func:`planned`, for a compressed model.
    of_bundle : callable or None
        Finds what a bundle takes.

    Raises
    ------
    BundleError
        If it is incomplete or changed.
    """
    try:
        kind = read_json(directory / MANIFEST, MAX_MANIFEST_BYTES)["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = "bundle"  # whose loader knows how to complain
    return _compressed(directory, needs) if kind == "compressed" else _bundle(directory, of_bundle)


def _bundle(directory: Path, needs: Callable[[Manifest], Mapping[str, Need]] | None) -> Inspection:
    from vtc.bundle.manifest import load_manifest

    manifest = load_manifest(directory)
    model, recipe = manifest.model, manifest.recipe
    return Inspection(
        model["name"],
        model["family"],
        recipe["name"],
        manifest.recipe_digest,
        *plans_of(manifest),
        budget_plans(manifest),
        needs={} if needs is None else needs(manifest),
    )


def _compressed(directory: Path, needs: Needs | None) -> Inspection:
    from vtc.compressed.checkpoint import read_compressed

    manifest, recipe, origin = read_compressed(directory)
    return planned(origin.name, recipe, image_options=image_options_of(manifest), needs=needs)


def warnings_of(directory: Path) -> list[str]:
    """What the manifest of a compressed model, or of a bundle, warns of; nothing of what is no such directory."""
    stored = None
    for kind in ("compressed", "bundle"):
        with contextlib.suppress(BundleError):
            stored = read_manifest(directory, kind, sys.maxsize).get("warnings")
    return [text for text in stored if isinstance(text, str)] if isinstance(stored, list) else []
