"""Plans and recipes that a bundle's manifest holds, which the runtime has not looked at."""

from __future__ import annotations

from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError
from vtc.plan.token_plan import TokenPlan
from vtc.recipe import Recipe


def plans_of(manifest: Manifest) -> tuple[TokenPlan, TokenPlan]:
    """What a bundle comes to, at the budget of its first images where it has several, and what its checkpoint does.

    Raises
    ------
    BundleError
        If the manifest holds something else.
    """
    try:
        made, baseline = TokenPlan.from_dict(manifest.plan), TokenPlan.from_dict(manifest.baseline_plan)
    except ValueError:
        raise _no_plan(manifest) from None
    keep = manifest.images[0].budget
    return made if keep is None else _by_budget(manifest, made)[keep], baseline


def budget_plans(manifest: Manifest) -> dict[int, TokenPlan]:
    """What a bundle comes to at each of its budgets, ascending; none where it has one for all questions.

    Raises
    ------
    BundleError
        If the manifest holds something else.
    """
    if not manifest.budgets:
        return {}
    try:
        return _by_budget(manifest, TokenPlan.from_dict(manifest.plan))
    except ValueError:
        raise _no_plan(manifest) from None


def _by_budget(manifest: Manifest, largest: TokenPlan) -> dict[int, TokenPlan]:
    # A manifest that is looked at for one budget names that one alone; the recipe names all.
    budgets, each = recipe_of(manifest).budgets, (*largest.smaller, largest)
    if len(budgets) != len(each):
        raise _no_plan(manifest)
    return dict(zip(budgets, each, strict=True))


def _no_plan(manifest: Manifest) -> BundleError:
    return BundleError(f"{manifest.root}: holds no plan that this vtc understands; export it again")


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
