"""What each verb takes of this machine for a model and a recipe: what ``vtc inspect`` tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtc.needs import Need

if TYPE_CHECKING:
    from vtc.bundle.manifest import Manifest
    from vtc.compressed.inspection import Needs
    from vtc.facts.placement import Placement
    from vtc.models.base import VLMAdapter
    from vtc.plan import TokenPlan
    from vtc.plan.costs import Costs
    from vtc.recipe import Recipe

PRECISIONS = ("fp32", "fp16", "q4")
"""Those that an export is told of; the others are like one of them."""
PROMPTS = 16
"""To prove an export on, as `vtc export` has it."""
QUESTIONS = 100
"""Of a validation; time goes with them."""
ANSWER = 16
"""Tokens of an answer."""


def needs_of_checkpoint(placement: Placement) -> Needs:
    """How the needs of a checkpoint's verbs are found, with PyTorch running where it is said."""

    def needs(outline: VLMAdapter, recipe: Recipe, plan: TokenPlan, baseline: TokenPlan) -> dict[str, Need]:
        from exporters.needs import export_need, run_need
        from exporters.precision import precision
        from vtc.calibrate.compress import Calibration
        from vtc.calibrate.needs import compress_need, training_needs
        from vtc.compressed.needs import costs_of
        from vtc.facts.placement import ON_CPU
        from vtc.reference import reference_dir

        costs, exporting = (costs_of(outline, where, True, recipe) for where in (placement, ON_CPU))
        found = {"show": _show(costs, plan)}
        samples = Calibration().samples if recipe.measured else 0
        found["compress"] = compress_need(recipe, plan, baseline, costs, samples)
        shipped = outline.path == reference_dir()  # whose trained parts come with it
        trained = {} if shipped else training_needs(recipe, plan, baseline, costs)
        found |= {f"train stages.{stage}": need for stage, need in trained.items()}
        wanted = [precision(name) for name in PRECISIONS]
        found |= {f"export {one.name}": export_need(plan, exporting, [one], PROMPTS) for one in wanted}
        found |= {f"run {one.name}": run_need(one, plan, exporting, ANSWER) for one in wanted}
        found[f"validate, {QUESTIONS} questions"] = _validate(costs, plan, baseline, found["run fp32"])
        return found

    return needs


def needs_of_bundle(manifest: Manifest) -> dict[str, Need]:
    """What running each of a bundle's precisions takes on a CPU."""
    from vtc.runtime.needs import bundle_need

    return {f"run {name}": bundle_need(manifest, name, "cpu") for name in manifest.precisions}


def _show(costs: Costs, plan: TokenPlan) -> Need:
    """The image is seen twice: for what is kept of it, and for the answer."""
    return _timed(costs, costs.more(costs.loaded(), costs.asked(plan)), costs.prefill(plan, 2), ANSWER)


def _validate(costs: Costs, plan: TokenPlan, baseline: TokenPlan, bundle: Need) -> Need:
    """The original beside a bundle; both answer, and both are scored along the original's answers."""
    from vtc.evaluate.asking import Effort
    from vtc.evaluate.comparison import SCORED

    at_once = Effort().batch_size
    asked = costs.asked(baseline, at_once, SCORED * (ANSWER + 1))
    prefills = [costs.prefill(one, 2 * QUESTIONS) for one in (plan, baseline)]
    seconds = None if None in prefills else sum(one for one in prefills if one is not None)
    need = costs.more(costs.loaded(), asked, bundle.seconds)
    return _timed(costs, need, seconds, 4 * ANSWER * QUESTIONS / at_once).beside(bundle)


def _timed(costs: Costs, need: Need, seconds: float | None, tokens: float) -> Need:
    """A need with the time of what is read and of so many tokens that are said one after another."""
    return costs.more(costs.more(need, seconds=seconds), seconds=costs.decode(tokens))
