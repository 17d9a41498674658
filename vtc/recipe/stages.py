"""What a user may write in a recipe: one small model per stage kind, and the budget.

Here are only the rules that hold for every model ("a fraction lies between 0 and 1"). What depends on a model
("layer 40 of 32") is said by `vtc.plan`. A new stage kind is a class and its name in `AnyStage`; selectors are in
`vtc.recipe.selectors`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from vtc.recipe.selectors import DecoderSelector, Selector, TextAttentionEntry
from vtc.recipe.values import (
    Fraction,
    Keep,
    KeepOrAuto,
    LayerDepthOrAuto,
    LayerOrDepth,
    LayersOrAuto,
    Positions,
    Ratio,
    Written,
)

DEFAULT_ENERGY = 0.95


class StageEntry(Written):
    summary: ClassVar[str]


class FrequencyFilterEntry(StageEntry):
    """Keep the low frequencies of the token grid: DCT, crop, smaller inverse DCT, before the projector.

    ``keep`` tokens form a smaller grid of the same aspect; ``auto`` is the smallest grid that holds
    ``energy`` of the spectrum. ``preserve_mean`` undoes the gain that the cropped orthonormal transform puts
    on a constant field, which a model that was not fine-tuned for it needs.

    Based on Fourier-VLM (arXiv 2508.06038).
    """

    summary = "DCT low-pass on the token grid"
    kind: Literal["frequency_filter"] = "frequency_filter"
    keep: KeepOrAuto
    energy: Fraction | None = None
    preserve_mean: bool = True

    @model_validator(mode="before")
    @classmethod
    def _default_energy(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("keep") == "auto" and data.get("energy") is None:
            return {**data, "energy": DEFAULT_ENERGY}
        return data

    @model_validator(mode="after")
    def _energy_goes_with_auto(self) -> FrequencyFilterEntry:
        if self.keep != "auto" and self.energy is not None:
            raise ValueError(f"energy is only for keep: auto, here keep is {self.keep}")
        return self


class PruneEntry(StageEntry):
    """Keep the tokens that a selector chooses, between the vision encoder and the decoder.

    ``keep`` may be left to the recipe's budget. ``positions`` is what the decoder is told of them: ``renumber`` counts
    the kept tokens through, ``original`` gives each the position it had among all. Where a position is time, row and
    column (Qwen's families), both mean ``original``.
    """

    summary = "keep the tokens that a selector chooses"
    kind: Literal["prune"] = "prune"
    keep: Keep | None = None
    selector: Selector
    positions: Positions = "renumber"


class PruneInDecoderEntry(StageEntry):
    """Keep, before decoder layer ``layer``, the visual tokens that a selector chooses by the prompt.

    Layers 0 to ``layer`` - 1 see all that entered, the others what is kept, each at the position it had; a number
    between 0 and 1 is a share of the decoder's depth. Several cuts may follow one another. ``keep`` may be left to the
    recipe's budget.

    Based on LearnPruner (arXiv 2604.23950), section 4, and PyramidDrop (arXiv 2410.17247) for several cuts.
    """

    summary = "keep, before a decoder layer, the tokens that the text attends to"
    kind: Literal["prune_in_decoder"] = "prune_in_decoder"
    layer: LayerOrDepth
    keep: Keep | None = None
    selector: DecoderSelector = TextAttentionEntry()


class VisualExitEntry(StageEntry):
    """All visual tokens leave before decoder layer ``layer`` (0-based); the text keeps its positions.

    A number between 0 and 1 is a share of the decoder's depth; ``auto`` is the earliest layer at which calibration data
    finds that nothing is lost. By ``agreement``, the most likely tokens still agree with the original's; by ``dyvte``,
    the answers' loss must not grow by 3 % either.

    Based on Visual Tokens Withdrawal (arXiv 2405.05803), ToDRE (arXiv 2505.18757, stage 2) for a given depth and DyVTE
    (arXiv 2411.19628), whose labels the second criterion is: its gates decide for each prompt, here all prompts share a
    layer, so that the graph has one shape.
    """

    summary = "all visual tokens leave before a decoder layer"
    kind: Literal["visual_exit"] = "visual_exit"
    layer: LayerDepthOrAuto
    criterion: Literal["agreement", "dyvte"] = "agreement"

    @model_validator(mode="after")
    def _criterion_goes_with_auto(self) -> VisualExitEntry:
        if self.layer != "auto" and self.criterion != "agreement":
            raise ValueError(f"criterion is only for layer: auto, here layer is {self.layer}")
        return self


class DropLayersEntry(StageEntry):
    """Remove whole layers of the decoder or the encoder, or only their work on visual tokens.

    With ``visual_only`` (decoder only) visual tokens skip the layers altogether: they are neither computed
    nor attended there, and come back in the next layer. ``auto`` leaves the choice of ``count`` layers to
    calibration.

    Based on ShortGPT (arXiv 2403.03853) for whole layers, YOPO (arXiv 2410.06169) for visual tokens only.
    """

    summary = "remove layers, or only their work on visual tokens"
    kind: Literal["drop_layers"] = "drop_layers"
    component: Literal["decoder", "encoder"] = "decoder"
    layers: LayersOrAuto
    count: Annotated[int, Field(ge=1)] | None = None
    visual_only: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> DropLayersEntry:
        if self.layers == "auto" and self.count is None:
            raise ValueError("layers: auto needs count, the number of layers to drop")
        if self.layers != "auto" and self.count is not None:
            raise ValueError("count is only for layers: auto, the list already says how many")
        if self.visual_only and self.component == "encoder":
            raise ValueError("visual_only is only for the decoder, the encoder sees nothing but visual tokens")
        return self


AnyStage = FrequencyFilterEntry | PruneEntry | PruneInDecoderEntry | VisualExitEntry | DropLayersEntry
STAGES: dict[str, type[StageEntry]] = {model.model_fields["kind"].default: model for model in get_args(AnyStage)}
Stage = Annotated[AnyStage, Field(discriminator="kind")]


# Budget -----------------------------------------------------------------------------------------------------


class Budget(Written):
    """What a recipe may spend, in place of a ``keep`` in each of its pruning stages.

    ``keep_average`` is the mean number of visual tokens over the decoder's layers (what papers call retained tokens),
    or that as a share of the tokens of an image; each pruning stage lets ``ratio`` times as many through as the next.

    Based on LearnPruner (arXiv 2604.23950), which fixes the ratio at 3.
    """

    keep_average: Keep
    ratio: Ratio = 3.0
