"""Plans and recipes that a bundle's manifest holds, which the runtime has not looked at."""

from __future__ import annotations

from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError
from vtc.plan.token_plan import TokenPlan
from vtc.recipe import Recipe


def plans_of(manifest: Manifest) -> tuple[TokenPlan, TokenPlan]:
    """What a bundle comes to, and what its checkpoint does.

    Raises
    ------
    BundleError
        If the manifest holds something else.
    """
    try:
        return TokenPlan.from_dict(manifest.plan), TokenPlan.from_dict(manifest.baseline_plan)
    except ValueError:
        raise BundleError(f"{manifest.root}: holds no plan that this vtc understands; export it again") from None


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that a bundle was made with.

    Raises
    ------
    BundleError
        If the manifest holds something else.
    """
    try:
        return Recipe.model_validate(manifest.recipe)
    except ValueError:
        raise BundleError(f"{manifest.root}: holds no recipe that this vtc understands; export it again") from None
