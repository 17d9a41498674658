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

    Every step draws how many tokens are kept, log-uniformly between ``budgets`` times the stage's own number, so that
    one pruner serves them all (``straight_through`` cannot aim at a number: it always has the stage's own). Of the
    tokens that are not kept, ``dropped`` random ones take part in a step and can win their place; 0 means all. Features
    of up to ``memory_gb`` are computed only once.
    """

    steps: Annotated[int, Field(ge=1)] = 1500
    images: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.003
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


AnySelector = RandomSelector | UniformSelector | ClsAttentionSelector | LearnedSelector
SELECTORS: dict[str, type[_SelectorEntry]] = {
    model.model_fields["name"].default: model for model in get_args(AnySelector)
}


def _expand_shorthand(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Selector = Annotated[AnySelector, Field(discriminator="name"), BeforeValidator(_expand_shorthand)]


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

    ``positions`` is what the decoder is told of them: ``renumber`` counts the kept tokens through,
    ``original`` gives each the position it had among all.
    """

    summary = "keep the tokens that a selector chooses"
    kind: Literal["prune"] = "prune"
    keep: Keep
    selector: Selector
    positions: Positions = "renumber"


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


AnyStage = FrequencyFilter | Prune | VisualExit | DropLayers
STAGES: dict[str, type[_StageEntry]] = {model.model_fields["kind"].default: model for model in get_args(AnyStage)}
Stage = Annotated[AnyStage, Field(discriminator="kind")]
