"""What a user may write in a recipe: one small model per stage kind and per selector.

Here are only the rules that hold for every model ("a fraction lies between 0 and 1"). What depends on a model
("layer 40 of 32") is said by `vtc.plan`. A new selector is a class and its name in `AnySelector`; a new stage
kind a class and its name in `AnyStage`.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

DEFAULT_ENERGY = 0.95


# Values -----------------------------------------------------------------------------------------------------


def _keep(value: object) -> int | float:
    if type(value) is int:
        if value < 1:
            raise ValueError(f"must keep at least 1 token, not {value}")
        return value
    if type(value) is float:
        if not 0.0 < value < 1.0:
            raise ValueError(
                f"a fraction lies between 0 and 1, {value} does not; a number of tokens has no decimal point"
            )
        return value
    raise ValueError(f"is a number of tokens such as 64 or a fraction such as 0.25, not {reprlib.repr(value)}")


def _keep_or_auto(value: object) -> int | float | Literal["auto"]:
    return "auto" if value == "auto" else _keep(value)


def _layer_or_depth(value: object) -> int | float:
    if type(value) is int or (type(value) is float and 0.0 < value < 1.0):
        return value
    raise ValueError(f"is the number of a layer or a depth between 0 and 1, not {reprlib.repr(value)}")


def _ratio(value: object) -> float:
    if type(value) in (int, float) and 1 < value < float("inf"):  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"is a number above 1, how many times more tokens come before a cut, not {reprlib.repr(value)}")


def _layer_or_auto(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if type(value) is int:
        return value
    raise ValueError(f"is the number of a layer or auto, not {reprlib.repr(value)}")


def _layers(value: object, otherwise: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value or any(type(item) is not int for item in value):
        raise ValueError(f"is {otherwise}a list of layer numbers such as [3, 4], not {reprlib.repr(value)}")
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise ValueError(f"layer {repeated[0]} is listed twice")
    return tuple(value)


def _layers_or_auto(value: object) -> tuple[int, ...] | Literal["auto"]:
    return "auto" if value == "auto" else _layers(value, "auto or ")


def _attention_layers(value: object) -> tuple[int, ...] | str:
    if isinstance(value, str) and value in ("feature", "auto"):
        return value
    return _layers([value] if type(value) is int else value, "feature, auto, a layer number or ")


Keep = Annotated[int | float, BeforeValidator(_keep)]
KeepOrAuto = Annotated[int | float | Literal["auto"], BeforeValidator(_keep_or_auto)]
LayerOrDepth = Annotated[int | float, BeforeValidator(_layer_or_depth)]
Ratio = Annotated[float, BeforeValidator(_ratio)]
LayerOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_layer_or_auto)]
LayersOrAuto = Annotated[tuple[int, ...] | Literal["auto"], BeforeValidator(_layers_or_auto)]
AttentionLayers = Annotated[tuple[int, ...] | Literal["feature", "auto"], BeforeValidator(_attention_layers)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Multiple = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positions = Literal["renumber", "original"]


class Written(BaseModel):
    """A part of a recipe: nothing is coerced, nothing unknown is accepted, nothing changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


# Selectors --------------------------------------------------------------------------------------------------


class _SelectorEntry(Written):
    """What ``vtc ls selectors`` tells of a method, beside its options."""

    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    needs: ClassVar[str] = "nothing"
    where: ClassVar[str] = "after the vision encoder, before the projector"
    text_aware: ClassVar[bool] = False
    exportable: ClassVar[bool] = True
    reads_encoder_grid: ClassVar[bool] = False
    """Its scores belong to the encoder's own patches, so no other stage may have replaced those."""
    needs_cls: ClassVar[bool] = False


class RandomSelector(_SelectorEntry):
    """The same random subset for every image: the floor that any method has to beat."""

    summary = "one random subset, the same for every image; a baseline"
    name: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=2**32)


class UniformSelector(_SelectorEntry):
    """Tokens at a uniform stride in raster order: the strongest baseline that does not look at the image."""

    summary = "uniform stride in raster order; a baseline"
    name: Literal["uniform"] = "uniform"


class ClsAttentionSelector(_SelectorEntry):
    """The tokens that the encoder's CLS token attends to most.

    ``layers`` says in which encoder layer the attention is read: ``feature`` is the layer whose output feeds
    the projector, a list is averaged, negative numbers count from the encoder's end, ``auto`` is calibrated.
    With ``feature``, ``last`` averages that many layers up to and including it.

    Based on FasterVLM (arXiv 2412.01818) and, for several layers, VTC-CLS (arXiv 2412.05819).
    """

    summary = "highest CLS attention; a list of layers is averaged"
    paper = "FasterVLM (arXiv 2412.01818); several layers: VTC-CLS (arXiv 2412.05819)"
    needs = "the CLS row of the encoder's attention"
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["cls_attention"] = "cls_attention"
    layers: AttentionLayers = "feature"
    last: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _last_goes_with_feature(self) -> ClsAttentionSelector:
        if self.last > 1 and self.layers != "feature":
            raise ValueError("last is only for layers: feature, a list already says which layers to average")
        return self


class PrunerTraining(Written):
    """How a learned selector is trained: ``steps`` of ``batch`` images each, out of ``images``.

    Before that, ``imitation_steps`` teach it the attention of the encoder's CLS token, where there is one; they take
    seconds, and training goes on from there.

    Every step draws how many tokens are kept, log-uniformly between ``budgets`` times the stage's own number, so that
    one pruner serves them all (``straight_through`` cannot aim at a number: it always has the stage's own). Of the
    tokens that are not kept, ``dropped`` random ones take part in a step and can win their place; 0 means all. Features
    of up to ``memory_gb`` are computed only once.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    imitation_steps: Annotated[int, Field(ge=0)] = 400
    images: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    mask: Literal["top_k", "straight_through"] = "top_k"
    lm_weight: Weight = 1.0
    kl_weight: Weight = 1.0
    budget_weight: Weight = 2.0
    budgets: Annotated[tuple[Multiple, Multiple], Field(strict=False)] = (0.5, 4.0)
    dropped: Annotated[int, Field(ge=0)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PrunerTraining:
        if self.lm_weight == 0 and self.kl_weight == 0:
            raise ValueError("lm_weight and kl_weight are both 0, there is nothing to learn from")
        if self.budgets[0] > self.budgets[1]:
            raise ValueError(f"budgets is the smaller and the larger multiple, not {list(self.budgets)}")
        return self


class LearnedSelector(_SelectorEntry):
    """A trained per-token scorer.

    ``checkpoint`` is a safetensors file beside the recipe; ``auto`` takes the one that ships with the model, if there
    is one, and trains one as ``training`` says, if there is none. ``diversity`` is the share of the budget given to
    tokens that resemble the chosen ones least.

    Based on LearnPruner (arXiv 2604.23950).
    """

    summary = "highest score of a trained per-token MLP"
    paper = "LearnPruner (arXiv 2604.23950)"
    needs = "the encoder's hidden states and a trained checkpoint"
    reads_encoder_grid = True
    name: Literal["learned"] = "learned"
    checkpoint: str = "auto"
    diversity: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    training: PrunerTraining | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_training(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("checkpoint", "auto") == "auto" and data.get("training") is None:
            return {**data, "training": {}}
        return data

    @model_validator(mode="after")
    def _training_goes_with_auto(self) -> LearnedSelector:
        if self.checkpoint != "auto" and self.training is not None:
            raise ValueError("training is only for checkpoint: auto, here the checkpoint is trained already")
        return self

    @field_validator("checkpoint")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if value == "auto":
            return value
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00]", value):
            raise ValueError(f"is a path below the recipe's own directory, not {reprlib.repr(value)}")
        if path.suffix != ".safetensors":
            raise ValueError(f"is a .safetensors file, not {reprlib.repr(value)}")
        return value


class TextAttentionSelector(_SelectorEntry):
    """The visual tokens that the prompt's text attends to in the decoder layer behind the cut.

    ``queries`` says which text tokens ask: all of those behind the image, all text, the last token (FastV,
    PyramidDrop), or SparseVLM's ``raters``, those behind the image that resemble it more than the average one. Without
    ``rope`` queries and keys are compared without their rotary positions (FEATHER), which takes out the preference for
    near tokens.

    Based on LearnPruner (arXiv 2604.23950); FastV (2403.06764), PyramidDrop (2410.17247), SparseVLM (2410.04417) and
    FEATHER (2412.13180) for the variants.
    """

    summary = "highest attention from the prompt's text"
    paper = "LearnPruner (arXiv 2604.23950); FastV, PyramidDrop, SparseVLM, FEATHER for its variants"
    needs = "queries and keys of one decoder layer"
    where = "before a decoder layer"
    text_aware = True
    name: Literal["text_attention"] = "text_attention"
    queries: Literal["text_after_image", "all_text", "last_token", "raters"] = "text_after_image"
    rope: bool = True


AnySelector = RandomSelector | UniformSelector | ClsAttentionSelector | LearnedSelector
ENCODER_SELECTORS: dict[str, type[_SelectorEntry]] = {
    model.model_fields["name"].default: model for model in get_args(AnySelector)
}
DECODER_SELECTORS: dict[str, type[_SelectorEntry]] = {"text_attention": TextAttentionSelector}
SELECTORS = ENCODER_SELECTORS | DECODER_SELECTORS


def _expand_shorthand(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Selector = Annotated[AnySelector, Field(discriminator="name"), BeforeValidator(_expand_shorthand)]
DecoderSelector = Annotated[TextAttentionSelector, BeforeValidator(_expand_shorthand)]


# Stages -----------------------------------------------------------------------------------------------------


class _StageEntry(Written):
    summary: ClassVar[str]


class FrequencyFilter(_StageEntry):
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
    def _energy_goes_with_auto(self) -> FrequencyFilter:
        if self.keep != "auto" and self.energy is not None:
            raise ValueError(f"energy is only for keep: auto, here keep is {self.keep}")
        return self


class Prune(_StageEntry):
    """Keep the tokens that a selector chooses, between the vision encoder and the decoder.

    ``keep`` may be left to the recipe's budget. ``positions`` is what the decoder is told of them: ``renumber`` counts
    the kept tokens through, ``original`` gives each the position it had among all.
    """

    summary = "keep the tokens that a selector chooses"
    kind: Literal["prune"] = "prune"
    keep: Keep | None = None
    selector: Selector
    positions: Positions = "renumber"


class PruneInDecoder(_StageEntry):
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
    selector: DecoderSelector = TextAttentionSelector()


class VisualExit(_StageEntry):
    """All visual tokens leave before decoder layer ``layer`` (0-based); the text keeps its positions.

    Based on Visual Tokens Withdrawal (arXiv 2405.05803).
    """

    summary = "all visual tokens leave before a decoder layer"
    kind: Literal["visual_exit"] = "visual_exit"
    layer: LayerOrAuto


class DropLayers(_StageEntry):
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
    def _consistent(self) -> DropLayers:
        if self.layers == "auto" and self.count is None:
            raise ValueError("layers: auto needs count, the number of layers to drop")
        if self.layers != "auto" and self.count is not None:
            raise ValueError("count is only for layers: auto, the list already says how many")
        if self.visual_only and self.component == "encoder":
            raise ValueError("visual_only is only for the decoder, the encoder sees nothing but visual tokens")
        return self


AnyStage = FrequencyFilter | Prune | PruneInDecoder | VisualExit | DropLayers
STAGES: dict[str, type[_StageEntry]] = {model.model_fields["kind"].default: model for model in get_args(AnyStage)}
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
