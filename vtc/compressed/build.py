"""Build a compressed model: a recipe applied to a loaded model, in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError
from vtc.facts.model import DecoderFacts
from vtc.models.base import VLMAdapter
from vtc.models.lora import merge_lora
from vtc.plan import TokenPlan, plan
from vtc.recipe import Recipe
from vtc.recipe.stages.base import METHODS, Place
from vtc.selectors.base import Selector
from vtc.selectors.trained import load_trained, trained_part
from vtc.stages import MODULES
from vtc.stages.base import BuildContext, CutStage, ModelStage, TokenStage
from vtc.tables import line

_log = logging.getLogger(__name__)

Modules = Mapping[int, nn.Module]
"""The module of each stage that has one, by the stage's number."""


def apply_recipe(
    adapter: VLMAdapter,
    recipe: Recipe,
    *,
    model_digest: str = "",
    from_state: bool = False,
    selectors: Mapping[int, Selector[Any]] | None = None,
    unchanged: DecoderFacts | None = None,
) -> CompressedModel:
    """Apply a recipe to a loaded model, in memory.

    Parameters
    ----------
    adapter : VLMAdapter
    recipe : Recipe
        Without ``auto`` values; see :mod:`vtc.calibrate` for those.
    model_digest : str
        The checkpoint's digest, which trained parts are checked against.
    from_state : bool
        Leave trained parts empty: the caller fills them with :func:`load_state`.
    selectors : mapping of stage number to Selector
        Selectors of your own, in place of those that the recipe names in its ``prune`` stages.
    unchanged : DecoderFacts or None
        Where the recipe's stages have changed the model's weights already, sizes of its decoder before they did.

    Returns
    -------
    CompressedModel
        In evaluation mode, sharing the adapter's weights.

    Raises
    ------
    RecipeError
        If the recipe does not fit the model.
    InputError
        If a trained part does not, or a selector reads questions where the model's prompts do not have them.
    """
    base_facts = adapter.facts if unchanged is None else replace(adapter.facts, decoder=unchanged)
    token_plan = plan(recipe, base_facts)
    check_questions(adapter, recipe)
    empty = range(len(recipe.stages)) if from_state else ()
    done = () if unchanged is None else [n for n, one in enumerate(recipe.stages) if one.place is Place.WEIGHTS]
    modules = build_modules(
        *(adapter, recipe, token_plan, model_digest), empty=empty, done=done, selectors=selectors or {}
    )
    model = assemble(adapter, token_plan, modules)
    model.base_facts = base_facts
    weights = next(adapter.embed_tokens.parameters())
    for parameter in model.trained.parameters():
        parameter.data = parameter.data.to(weights.dtype)
    if not from_state:
        merge_lora(model.adapter)
    return model


def load_state(model: CompressedModel, state: Mapping[str, Tensor]) -> None:
    """Fill the trained parts of a model that was built to be filled `from_state`.

    Raises
    ------
    RuntimeError
        If the state is of another model.
    """
    model.trained.load_state_dict(state)
    merge_lora(model.adapter)


def check_questions(adapter: VLMAdapter, recipe: Recipe) -> None:
    """Make sure that selectors and projectors that read the question find it: they look at the text after an image.

    Before the decoder that is all they know of it. Inside the decoder, what comes after the image has seen what comes
    before, so that there is a choice, and a note.

    Raises
    ------
    InputError
        If a selector before the decoder reads questions, and the chat template puts them before the image.
    """
    methods = [
        (number, stage, getattr(stage, key, None)) for number, stage in enumerate(recipe.stages) for key in METHODS
    ]
    readers = [
        (number, method, stage.place < Place.DECODER)
        for number, stage, method in methods
        if method is not None and method.seeks_question
    ]
    if not readers or adapter.question_follows_image:
        return
    for number, method, before in readers:
        where = f"{recipe.name}: stages.{number}: {method.name} reads the question in the text after the image"
        what = f"the chat template of {adapter.path} puts the question before it"
        if before:
            raise InputError(
                f"{where}, and {what}; take one that reads no question (vtc ls selectors), or a selector in the decoder"
            )
        _log.warning("note: %s, and %s: it goes by the words after the image alone", where, what)


def check_parts(adapter: VLMAdapter, recipe: Recipe, model_digest: Callable[[], str]) -> None:
    """Make sure that the files of trained parts that a recipe names hold parts of this model.

    Parameters
    ----------
    adapter : VLMAdapter
        Its weights are not looked at.
    recipe : Recipe
    model_digest : callable
        Gives the checkpoint's digest; it is asked where there is such a file, since it takes a while.

    Raises
    ------
    RecipeError
        If a file is missing.
    InputError
        If one is damaged, or was trained on another model or for another place.
    """
    numbers = [number for number, _, entry in recipe.trained() if entry.checkpoint != "auto"]
    for number in numbers:
        file, entry = recipe.checkpoint(number), recipe.stages[number]
        build = line(MODULES, entry, "MODULES of vtc.stages")
        part = trained_part(build(entry, BuildContext(adapter, plan(recipe, adapter.facts), number, None)))
        if part is not None:
            load_trained(file, part, model_digest())


def build_modules(
    adapter: VLMAdapter,
    recipe: Recipe,
    token_plan: TokenPlan,
    model_digest: str,
    *,
    empty: Container[int] = (),
    done: Container[int] = (),
    selectors: Mapping[int, Selector[Any]] | None = None,
) -> Modules:
    """Build the modules of a recipe's stages.

    Parameters
    ----------
    adapter, recipe, model_digest, selectors
        As for :func:`apply_recipe`.
    token_plan : TokenPlan
        The recipe resolved against the model.
    empty : container of int
        Numbers of the stages whose trained part keeps the parameters that it is created with.
    done : container of int
        Numbers of the stages that have changed the model already, and have no module.
    """
    own = selectors or {}
    modules: dict[int, nn.Module] = {}
    for number, entry in enumerate(recipe.stages):
        build = line(MODULES, entry, "MODULES of vtc.stages")
        context = BuildContext(adapter, token_plan, number, own.get(number))
        module = None if number in done else build(entry, context)
        if module is None:
            continue
        modules[number] = module
        if isinstance(module, ModelStage):
            adapter = module.changed(adapter)
        part = trained_part(module)
        if part is not None and number not in empty and number not in own:
            load_trained(recipe.checkpoint(number), part, model_digest)
    return modules


def assemble(adapter: VLMAdapter, token_plan: TokenPlan, modules: Modules) -> CompressedModel:
    """Put the modules of stages where they act; see :func:`apply_recipe` for what comes out."""
    base_facts = adapter.facts
    stages = [module for module in modules.values() if isinstance(module, TokenStage)]
    for stage in modules.values():
        if isinstance(stage, ModelStage):
            adapter = stage.changed(adapter)
    cuts = {token_plan.segment_of(n): module for n, module in modules.items() if isinstance(module, CutStage)}
    tells_padding = bool(cuts) and adapter.pixels.pads
    vision = VisionEncoder(adapter, token_plan.encoder_layers, stages, tells_padding=tells_padding)
    model = CompressedModel(adapter, token_plan, vision, cuts=cuts).eval().requires_grad_(False)
    model.base_facts = base_facts
    model.trained.to(next(adapter.embed_tokens.parameters()).device)
    return model
