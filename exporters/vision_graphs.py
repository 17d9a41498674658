"""The graphs that images pass before the decoder: one, or two where what reads the question is a graph of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exporters.graph_spec import GraphSpec, SourceModule
from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.runtime.decoder import PADDING
from vtc.visual_tokens import TextEmbeddings, VisualTokens

VISION, READER = "vision_encoder", "text_reader"
"""How the names of vision graphs begin, and of those that go on after them with the question; a layout's suffix
follows."""
SEEN = "seen_"
"""How the names of what goes from the one to the other begin."""


class VisionGraph(nn.Module):
    """`pixel_values` to `image_features` and `keep_indices`; float32 outside whatever the precision inside.

    Where a selector looks at the questions, `text_embeds` and `text_mask` go in too. Where cuts inside the decoder are
    to know it, `padding` comes out too.
    """

    def __init__(self, model: CompressedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision = model.vision
        self.dtype = dtype

    def forward(
        self, pixel_values: Tensor, text_embeds: Tensor | None = None, text_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        text = None if text_embeds is None or text_mask is None else TextEmbeddings(text_embeds, text_mask)
        features, *others = self.vision(pixel_values.to(self.dtype), text)
        return (features.float(), *others)


class SeeingGraph(nn.Module):
    """`pixel_values` to all that is made of images whatever is asked about them; floats are float32 outside."""

    def __init__(self, model: CompressedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision = model.vision
        self.dtype = dtype

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(outside(self.vision.before_question(pixel_values.to(self.dtype))))


def outside(seen: VisualTokens) -> list[Tensor]:
    """What goes from one vision graph to the next, as float32 and int64."""
    return [value.float() if value.is_floating_point() else value.long() for value in seen.tensors().values()]


class ReadingGraph(nn.Module):
    """What a :class:`SeeingGraph` makes and the questions to what a :class:`VisionGraph` gives.

    Parameters
    ----------
    model : CompressedModel
    seen : VisualTokens
        Of any images: names, types, and grids.
    """

    def __init__(self, model: CompressedModel, seen: VisualTokens) -> None:
        super().__init__()
        self.vision = model.vision
        self.seen = seen

    def forward(self, seen: list[Tensor], text_embeds: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        example = self.seen.tensors()
        named = {name: value.to(example[name].dtype) for name, value in zip(example, seen, strict=True)}
        text = TextEmbeddings(text_embeds, text_mask)
        features, *others = self.vision.with_question(replace(self.seen.with_tensors(named), text=text))
        return (features.float(), *others)


def suffix(layout: int) -> str:
    """Ending of the names of graphs that are made for layout number `layout`."""
    return f"_{layout}" if layout else ""


def vision_graphs(models: Sequence[CompressedModel], number: int) -> tuple[str, ...]:
    """Names of the graphs that images pass in model number `number`.

    Where the recipe splits it there are two. The first is the same for all budgets of which it knows nothing.
    """
    if not splits(models[number]):
        return (f"{VISION}{suffix(number)}",)
    known = [(one.adapter.facts.layout, one.adapter.pixels, one.plan.stages[: one.plan.split_at]) for one in models]
    return f"{VISION}{suffix(known.index(known[number]))}", f"{READER}{suffix(number)}"


def splits(model: CompressedModel) -> bool:
    """Whether what a model makes of images before it reads the question is a graph of its own."""
    return model.plan.split_at is not None and model.reads_text


def vision_specs(models: Sequence[CompressedModel], number: int, dtype: torch.dtype) -> list[GraphSpec]:
    """The graphs of :func:`vision_graphs`, without one that another model has given."""
    model, (name, *reader) = models[number], vision_graphs(models, number)
    pixels, rows = torch.zeros(2, *model.adapter.pixels.shape), 2 * model.plan.spans
    image, span = {0: "batch_size"}, {0: "batch_size" if rows == 2 else "span_count"}
    text = torch.zeros(rows, 5, model.adapter.facts.decoder.width), torch.ones(rows, 5, dtype=torch.long)
    asked, asked_axes = ["text_embeds", "text_mask"], [{**span, 1: "text_length"}] * 2
    outputs = ["image_features", "keep_indices", *[PADDING] * model.tells_padding]
    if not reader:
        args, inputs, axes = (pixels, *text), ["pixel_values", *asked], (image, *asked_axes)
        taken = 3 if model.reads_text else 1
        return [GraphSpec(name, VisionGraph(model, dtype), args[:taken], inputs[:taken], outputs, axes[:taken])]
    with torch.no_grad():
        seen = model.vision.before_question(pixels.to(dtype))
    between, given = [SEEN + one for one in seen.tensors()], outside(seen)
    reading = ([span] * len(between), *asked_axes)
    specs = [
        GraphSpec(name, SeeingGraph(model, dtype), (pixels,), ["pixel_values"], between, (image,)),
        GraphSpec(reader[0], ReadingGraph(model, seen), (given, *text), [*between, *asked], outputs, reading),
    ]
    return specs if name == VISION + suffix(number) else specs[1:]


def vision_modules(models: Sequence[CompressedModel], number: int) -> dict[str, SourceModule]:
    """For each of the graphs of :func:`vision_graphs`, the part of a PyTorch model that it is made of."""
    model, (name, *reader) = models[number], vision_graphs(models, number)
    if not reader:
        return {name: SourceModule(model, model.vision)}
    return {
        name: SourceModule(model, model.vision, lambda pixels, text: pixels),
        reader[0]: SourceModule(model, model.vision, partial(_read, model.vision)),
    }


def _read(vision: VisionEncoder, pixel_values: Tensor, text: TextEmbeddings) -> tuple[Any, ...]:
    """What a :class:`ReadingGraph` is given where a vision encoder is given pixels and questions."""
    return outside(vision.before_question(pixel_values)), text
