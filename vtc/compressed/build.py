"""Build a compressed model: a recipe applied to a loaded model, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vtc.compressed.model import CompressedModel, CutSelector
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.recipe import FrequencyFilterEntry, PruneEntry, PruneInDecoderEntry, Recipe
from vtc.recipe.selectors import TrainedSelectorEntry
from vtc.selectors import BuildContext, build_selector
from vtc.selectors.base import NOTHING, Selector
from vtc.selectors.decoder import build_decoder_selector
from vtc.stages.frequency_filter import FrequencyFilter
from vtc.stages.prune import Prune


def apply_recipe(
    adapter: VLMAdapter,
    recipe: Recipe,
    *,
    model_digest: str = "",
    from_state: bool = False,
    selectors: Mapping[int, Selector] | None = None,
) -> CompressedModel:
    """Apply a recipe to a loaded model, in memory.

    Parameters
    ----------
    adapter : VLMAdapter
    recipe : Recipe
        Without ``auto`` values; see :mod:`vtc.calibrate.calibrator` for those.
    model_digest : str
        The checkpoint's digest, which trained parts are checked against.
    from_state : bool
        Leave trained parts empty: the caller loads them from a compressed model's state.
    selectors : mapping of stage number to Selector
        Selectors of your own, in place of those that the recipe names in its ``prune`` stages.

    Returns
    -------
    CompressedModel
        In evaluation mode, sharing the adapter's weights.

    Raises
    ------
    RecipeError
        If the recipe does not fit the model.
    """
    token_plan = plan(recipe, adapter.facts)

    def checkpoint(number: int, entry: PruneEntry | PruneInDecoderEntry) -> Path | None:
        trained = isinstance(entry.selector, TrainedSelectorEntry) and not from_state
        return recipe.checkpoint(number) if trained else None

    cuts = {}
    for number, segment in enumerate(token_plan.segments):
        cut_entry = None if segment.stage is None else recipe.stages[segment.stage]
        if segment.stage is not None and isinstance(cut_entry, PruneInDecoderEntry):
            trained = checkpoint(segment.stage, cut_entry)
            around = token_plan.around(number)
            decoder_selector = build_decoder_selector(cut_entry.selector, adapter, *around, trained, model_digest)
            cuts[number] = CutSelector(decoder_selector, cut_entry.selector.query_tokens)
    stages: list[nn.Module] = []
    needs = NOTHING
    for number, (entry, stage) in enumerate(zip(recipe.stages, token_plan.stages, strict=True)):
        if isinstance(entry, FrequencyFilterEntry):
            stages.append(FrequencyFilter(stage.grids_in, stage.grids_out, preserve_mean=entry.preserve_mean))
        elif isinstance(entry, PruneEntry):
            own = (selectors or {}).get(number)
            trained = checkpoint(number, entry) if own is None else None
            context = BuildContext(adapter.facts, stage.layers, model_digest, trained, token_plan.encoder_layers)
            selector = own or build_selector(entry.selector, context)
            needs |= selector.needs
            stages.append(Prune(selector, token_plan.each(stage.tokens_out)))
    vision = VisionEncoder(adapter, token_plan.encoder_layers, stages, needs)
    return CompressedModel(adapter, token_plan, vision, cuts=cuts).eval().requires_grad_(False)
