"""``vtc.inspect``: what a recipe comes to on a model, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vtc.api.arguments import as_placement, as_recipe
from vtc.api.needs import needs_of_bundle, needs_of_checkpoint
from vtc.compressed.inspection import TEXT_TOKENS, Inspection, finished, is_finished, planned
from vtc.errors import InputError
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import Device, Dtype
from vtc.recipe import Recipe


def inspect(
    target: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    text_tokens: int | None = None,
    image_options: ImageOptions = ANY_IMAGE,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> Inspection:
    """Work out tokens per stage and per decoder layer, FLOPs and KV bytes, and what each verb takes, before any work.

    Times are by a measurement of this machine, of a second at most.

    Parameters
    ----------
    target : str or Path
        ``reference`` or a checkpoint's directory; or a bundle or a compressed model, which shows its own plan.
    recipe : str, Path or Recipe, or None
        For a checkpoint; None is the model as it is.
    overrides : sequence of str
        Values of the recipe to change.
    text_tokens : int or None
        Tokens of the prompt beside the image's; None takes 32.
    image_options : ImageOptions
        What images the model is to serve.
    device : {"cpu", "cuda", "auto"}
        Where PyTorch is to run it, as for :func:`compress`; exports run on the CPU.
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Type of its weights there.

    Returns
    -------
    Inspection

    Raises
    ------
    RecipeError
        If the recipe does not fit the model.
    InputError
        If there is no such target, or a finished one is asked about another recipe.

    Examples
    --------
    >>> import vtc
    >>> found = vtc.inspect("reference", "fastervlm-25")
    >>> found.plan.kv_bytes < found.baseline.kv_bytes
    True
    >>> sorted(found.needs)[:2]
    ['compress', 'export fp16']
    """
    needs = needs_of_checkpoint(as_placement(device, dtype))
    if not is_finished(target):
        tokens = TEXT_TOKENS if text_tokens is None else text_tokens
        return planned(target, as_recipe("none" if recipe is None else recipe, overrides), tokens, image_options, needs)
    if recipe is not None or overrides or text_tokens is not None or image_options != ANY_IMAGE:
        raise InputError(f"{target} was made with a recipe; inspect the model it was made from to try another")
    return finished(Path(target), needs, needs_of_bundle)
