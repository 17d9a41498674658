"""How visual tokens are chosen, one method per file; :func:`build_selector` is the table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.facts import EncoderFacts
from vtc.recipe_selectors import ClsAttentionSelector, LearnedSelector, RandomSelector, UniformSelector
from vtc.selectors.base import Selector
from vtc.selectors.cls_attention import CLSAttention
from vtc.selectors.learned import Learned
from vtc.selectors.random import Random
from vtc.selectors.uniform import Uniform


@dataclass(frozen=True)
class BuildContext:
    """What building a selector may ask for.

    Attributes
    ----------
    encoder : EncoderFacts
        Sizes of the vision encoder.
    layers : tuple of int
        Encoder layers that the plan reads for this selector.
    model_digest : str
        SHA-256 of the checkpoint, which a trained part must have been trained on.
    checkpoint : Path or None
        File of the trained part; None when its tensors come later, with a compressed model's state.
    encoder_layers : tuple of int
        Encoder layers that run at all, which a trained part must have been trained on.
    """

    encoder: EncoderFacts
    layers: tuple[int, ...] = ()
    model_digest: str = ""
    checkpoint: Path | None = None
    encoder_layers: tuple[int, ...] = ()


def _learned(spec: LearnedSelector, context: BuildContext) -> Selector:
    if context.checkpoint is None:
        return Learned(context.encoder.width, spec.diversity)
    return Learned.from_checkpoint(
        context.checkpoint,
        width=context.encoder.width,
        model_digest=context.model_digest,
        layers=context.encoder_layers,
        diversity=spec.diversity,
    )


_BUILDERS: dict[type, Callable[[Any, BuildContext], Selector]] = {
    RandomSelector: lambda spec, _: Random(spec.seed),
    UniformSelector: lambda _, __: Uniform(),
    ClsAttentionSelector: lambda _, context: CLSAttention(context.layers),
    LearnedSelector: _learned,
}


def build_selector(spec: Any, context: BuildContext) -> Selector:
    """The selector that a recipe entry describes."""
    return _BUILDERS[type(spec)](spec, context)
