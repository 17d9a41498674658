"""What a model in PyTorch takes to be asked, and a refusal before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vtc.facts.placement import ON_CPU, Placement
from vtc.gpu_memory import gpu_memory
from vtc.models.base import VLMAdapter
from vtc.models.checkpoint_files import stored_dtype, weight_files
from vtc.needs import Need, refuse_what_cannot_fit
from vtc.plan import plan
from vtc.plan.costs import Costs, Speed, Use, Weights
from vtc.recipe import NONE, Recipe
from vtc.speed import measured_speed

NOTHING = Need()
LESS_MEMORY = "--dtype auto, --device auto (which fetches what does not fit as it runs), or images of fewer pixels"
BeforeLoading = Callable[[VLMAdapter, Recipe], None]
"""Called with a model without the numbers of its weights, and what is to be done to it."""


def room_for(use: Use, placement: Placement = ON_CPU, besides: Need = NOTHING) -> BeforeLoading:
    """Make sure that there is room for a use of a model, and for what else is in memory meanwhile.

    Raises
    ------
    OutOfResources
        When it is called, if there is not.
    """

    def check(outline: VLMAdapter, recipe: Recipe) -> None:
        made, whole = (plan(one, outline.facts) for one in (recipe, NONE))
        refuse(use.verb, use.need(costs_of(outline, placement, recipe=recipe), made, whole).beside(besides), placement)

    return check


def refuse(what: str, need: Need, placement: Placement, advice: str = LESS_MEMORY, out: Path | None = None) -> None:
    """Refuse what cannot fit; weights that have no room may be fetched as they run, where the placement says so.

    Raises
    ------
    OutOfResources
    """
    if placement.device == "auto":
        need = Need(disk=need.disk)
    refuse_what_cannot_fit(what, need, advice, out, gpu_memory() if need.gpu else None)


def costs_of(outline: VLMAdapter, placement: Placement = ON_CPU, speed: bool = False, recipe: Recipe = NONE) -> Costs:
    """What a checkpoint takes in PyTorch.

    Parameters
    ----------
    outline : VLMAdapter
        All of it but the numbers of its weights.
    placement : Placement
    speed : bool
        Whether this machine's is measured, which times need; a GPU that is not there has none.
    recipe : Recipe
        What is done to it.
    """
    sizes = [parameter.numel() for parameter in outline.model.parameters()]
    stored = stored_dtype(outline.path)
    files = sum(file.stat().st_size for file in weight_files(outline.path))
    dtype = stored if placement.dtype == "auto" else placement.dtype
    on_gpu = placement.device == "cuda" or (placement.device == "auto" and gpu_memory() is not None)
    here = not on_gpu or gpu_memory() is not None
    measured: Speed | None = measured_speed(dtype, on_gpu) if speed and here else None
    weights = Weights(sum(sizes), max(sizes, default=0), stored, files)
    lora = next(filter(None, (getattr(entry, "lora", None) for _, _, entry in recipe.trained())), None)
    return Costs(outline.facts, weights, dtype, on_gpu, measured, lora)
