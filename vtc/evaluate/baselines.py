"""Baselines of a comparison: models that spend the same budget without looking, and one that sees no image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vtc.errors import InputError
from vtc.evaluate.answers import Contestant
from vtc.evaluate.layouts import by_layout
from vtc.evaluate.predictor import Predictor
from vtc.inputs.layouts import offer_of
from vtc.plan.token_plan import TokenPlan

if TYPE_CHECKING:
    from vtc.models.base import VLMAdapter

Baseline = Literal["random", "uniform", "downsample", "blind"]
BASELINES: tuple[Baseline, ...] = ("random", "uniform", "downsample", "blind")
"""Ways to spend the same budget without looking, and a model that sees no image."""

RANDOM_DRAWS = 16
"""Choices of places among which the random baseline's questions are shared out; one alone may be lucky or not."""


def baseline_keep(plan: TokenPlan | None) -> int | None:
    """Count the visual tokens that a baseline may spend: as many as the plan has on average over the decoder's layers.

    For stages before the decoder that is the number that enters it. Where an image is several runs of
    placeholders, each gets as many. None where nothing is saved, so that there is nothing to compare with.
    """
    if plan is None:
        return None
    return budget(plan.layer_average, plan.spans, plan.visual_tokens_in)


def budget(average: float, spans: int, tokens: int) -> int | None:
    """Tokens, as many for each span, that come nearest to an average; None where that saves none of the image's."""
    keep = spans * max(1, round(average / spans))
    return keep if keep < tokens else None


def open_baselines(
    adapters: Sequence[VLMAdapter], names: Sequence[str], keeps: Sequence[int | None], seed: int
) -> tuple[list[Contestant], dict[str, str]]:
    """Open the baselines at a budget, and say why others of `names` cannot be; without a budget none that needs one.

    Parameters
    ----------
    adapters : sequence of VLMAdapter
        The model, made ready for each layout of images that is judged.
    names : sequence of str
        Of :data:`BASELINES`.
    keeps : sequence of int or None
        Budget of each layout; None where nothing is saved.
    seed : int
        Of the random baseline.
    """
    from vtc.compressed.baselines import baseline

    layouts = [adapter.facts.layout for adapter in adapters]
    offers = [offer_of(layout) for layout in layouts]
    # Where one layout saves nothing, its images keep every token.
    budgets = [keep or layout.spans * layout.tokens for keep, layout in zip(keeps, layouts, strict=True)]

    def predictor(name: Baseline, seed: int = 0) -> Predictor:
        one_each = zip(adapters, budgets, strict=True)
        return by_layout([baseline(adapter, name, keep, seed) for adapter, keep in one_each], offers)

    found: list[Contestant] = []
    left_out: dict[str, str] = {}
    for name in BASELINES:
        if name not in names or (not any(keeps) and name != "blind"):
            continue
        draws = RANDOM_DRAWS if name == "random" else 1
        try:
            first, *others = (predictor(name, seed + draw) for draw in range(draws))
        except InputError as error:
            left_out[name] = str(error)
            continue
        found.append(Contestant(name, first, adapters[0].chat, others=tuple(others)))
    return found, left_out
