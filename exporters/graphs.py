"""A compressed model as ONNX graphs: standard operators, constant visual token count, dynamic batch and text length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exporters.graph_spec import GraphSpec, SourceModule
from exporters.steps import SEGMENT, WHOLE
from exporters.vision_graphs import suffix, vision_modules, vision_specs
from vtc.compressed.decoder import DecoderSegment
from vtc.compressed.model import CompressedModel
from vtc.compressed.selection import Selection
from vtc.facts.model import DecoderFacts
from vtc.inputs.schedule import token_rows
from vtc.models.parts.split_mixture import ModalityRows
from vtc.plan import SegmentPlan
from vtc.runtime.decoder import BEFORE, KEPT_PADDING, PADDING, PRUNED, ROWS
from vtc.stages.base import Cut
from vtc.stages.prune_in_decoder import PruneInDecoder

ROW_AXES: Any = {0: "text_count"}, {0: "visual_count"}, {0: "batch_size", 1: "sequence_length"}
"""Dynamic axes of `ROWS`."""


class EmbedGraph(nn.Module):
    """`input_ids` to `inputs_embeds`, float32 outside."""

    def __init__(self, model: CompressedModel) -> None:
        super().__init__()
        self.embed_tokens = model.embed_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        embeds: Tensor = self.embed_tokens(input_ids)
        return embeds.float()


class SegmentGraph(nn.Module):
    """A decoder segment; float32 outside but for the cache, which is of the precision inside.

    Hidden states are float32 so that they cannot overflow on the way from one graph to the next.
    """

    def __init__(self, segment: DecoderSegment, dtype: torch.dtype) -> None:
        super().__init__()
        self.segment = segment
        self.dtype = dtype

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
        block_ids: Tensor | None = None,
        key_position_ids: Tensor | None = None,
        rows: ModalityRows | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor | None]:
        output, present, tapped = self.segment(
            hidden.to(self.dtype), attention_mask, position_ids, past, block_ids, key_position_ids, rows=rows
        )
        return output.float(), present, None if tapped is None else tapped.float()


class CutGraph(nn.Module):
    """A cut inside the decoder; hidden states are float32 outside whatever the precision inside.

    Where it is given `padding`, it gives out that of the tokens that stay, for the next cut.
    """

    def __init__(self, cut: PruneInDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.cut = cut
        self.dtype = dtype

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cut: Cut,
        before: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        before = None if before is None else before.to(self.dtype)
        kept, kept_positions, keep_indices = self.cut(hidden.to(self.dtype), attention_mask, position_ids, cut, before)
        padding = [] if cut.padding is None else [torch.gather(cut.padding, 1, keep_indices)]
        return (kept.float(), kept_positions, keep_indices, *padding)


def extra_inputs(decoder: DecoderFacts) -> dict[str, bool]:
    """What a segment's graph may take beyond what every decoder's does, each (B, P + S), and whether this one does."""
    return {"block_ids": decoder.bidirectional != "none", "key_position_ids": decoder.window > 0}


def graph_specs(models: Sequence[CompressedModel], dtype: torch.dtype) -> list[GraphSpec]:
    """The graphs that make up a compressed model, in the order data meets them.

    Parameters
    ----------
    models : sequence of CompressedModel
        One for each layout of images that is served, which share all but the graphs that depend on it.
    dtype : torch.dtype
    """
    first = models[0]
    specs = [spec for number in range(len(models)) for spec in vision_specs(models, number, dtype)]
    specs.append(
        GraphSpec(
            "embed_tokens",
            EmbedGraph(first),
            (torch.zeros(2, 7, dtype=torch.long),),
            ["input_ids"],
            ["inputs_embeds"],
            ({0: "batch_size", 1: "sequence_length"},),
        )
    )
    for number, (segment, spec) in enumerate(zip(first.segments, first.plan.segments, strict=True)):
        if spec.enters == "prune":
            specs += [
                prune_spec(
                    selector_name(number) + suffix(layout),
                    model.handoffs[number],
                    first.begins(number),
                    dtype,
                    padding=model.tells_padding,
                )
                for layout, model in enumerate(models)
            ]
        elif spec.enters != "same":
            specs.append(_selector_spec(first, number, spec.enters))
        specs.append(_segment_spec(first, number, segment, spec, dtype))
    return specs


def selection_spec(selection: Selection, images: int) -> GraphSpec:
    """Selection before the decoder as a graph of its own, for a fixed number of images: to measure it."""
    args = selection.example(images)
    axes: tuple[Any, ...] = tuple({} for _ in args)
    return GraphSpec("selection", selection, args, selection.inputs, ["features", "keep_indices"], (axes,))


def segment_name(model: CompressedModel, number: int) -> str:
    """File stem of a decoder segment's graph; a decoder in one piece has the name that other tools look for."""
    return WHOLE if len(model.segments) == 1 else f"{SEGMENT}_{number}"


def selector_name(number: int) -> str:
    """File stem of the graph before decoder segment `number`."""
    return f"token_selector_{number}"


def _selector_spec(model: CompressedModel, number: int, enters: str) -> GraphSpec:
    hidden = {0: "batch_size", 1: "sequence_length"}
    kept = {0: "batch_size", 1: "kept_length"}
    name, module, facts = selector_name(number), model.handoffs[number], model.adapter.facts.decoder
    here = facts.hidden_width(model.begins(number))
    sat_out = enters == "merge"  # what sits out stands before the segment before
    full = torch.zeros(2, 9, facts.hidden_width(model.begins(number - 1)) if sat_out else here)
    part = torch.zeros(2, 4, here)
    args: tuple[Any, ...]
    axes: tuple[Any, ...]
    if enters == "gather":
        args, names, axes = (full, torch.zeros(2, 4, dtype=torch.long)), ["full_hidden_states"], (hidden, kept)
    else:
        args, axes = (full, part, torch.zeros(2, 9, dtype=torch.long)), (hidden, kept, hidden)
        names = ["full_hidden_states", "part_hidden_states"]
    return GraphSpec(name, module, args, [*names, "indices"], ["hidden_states"], axes)


def prune_spec(name: str, module: Any, layer: int, dtype: torch.dtype, *, padding: bool = False) -> GraphSpec:
    """The graph of a cut inside the decoder, a :class:`PruneInDecoder` on tokens that stand before `layer`.

    With `padding` it is told which visual tokens are padding.
    """
    rows, images, asking, text, shorter = 2, 3, 4, 7, 11
    length = module.tokens + text
    facts = module.selector.adapter.facts.decoder

    def whole(*shape: int) -> Tensor:
        return torch.ones(*shape, dtype=torch.long)

    columns = torch.arange(module.tokens).expand(images, -1).contiguous()
    sequence, kept = {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 1: "kept_length"}
    image, query = {0: "image_count"}, {0: "image_count", 1: "query_length"}
    before = [BEFORE] if module.selector.entry.reads_before else []
    named = [field for field in Cut._fields if padding or field != PADDING]
    states = torch.zeros(rows, length, facts.hidden_width(layer))
    places, place_axes = _positions(facts, whole(rows, length))
    return GraphSpec(
        name,
        CutGraph(module, dtype),
        (
            states,
            whole(rows, length),
            places,
            Cut(
                torch.zeros(images, dtype=torch.long),
                columns,
                whole(images, asking) * (length - 1),
                whole(images, asking),
                torch.zeros(rows, shorter, dtype=torch.long),
                torch.zeros_like(columns) if padding else None,
            ),
            *[states[..., : facts.width].clone() for _ in before],
        ),
        ["full_hidden_states", "attention_mask", "position_ids", *named, *before],
        [*PRUNED, *[KEPT_PADDING] * padding],
        (
            sequence,
            sequence,
            place_axes,
            Cut._make([image, image, query, query, kept, image if padding else None]),
            *[sequence for _ in before],
        ),
    )


def _segment_spec(
    model: CompressedModel, number: int, segment: Any, planned: SegmentPlan, dtype: torch.dtype
) -> GraphSpec:
    decoder, layers = model.adapter.facts.decoder, planned.layers
    by_modality = decoder.visual_experts > 0 and planned.sees == "all"
    first, last = number == 0, number == len(model.segments) - 1
    batch, length, past = 2, 5, 3
    cache = torch.zeros(batch, decoder.kv_heads, past, decoder.head_dim, dtype=dtype)
    places, place_axes = _positions(decoder, torch.arange(past, past + length).expand(batch, length).contiguous())
    extra = extra_inputs(decoder)
    width = decoder.hidden_width(model.begins(number))
    args = (
        torch.zeros(batch, length, width),
        torch.ones(batch, past + length, dtype=torch.long),
        places,
        [(cache.clone(), cache.clone()) for _ in layers],
        *[torch.zeros(batch, past + length, dtype=torch.long) if taken else None for taken in extra.values()],
        _example_rows(batch, length) if by_modality else None,
    )
    past_axes = {0: "batch_size", 2: "past_sequence_length"}
    axes = (
        {0: "batch_size", 1: "sequence_length"},
        {0: "batch_size", 1: "total_sequence_length"},
        place_axes,
        [(past_axes, past_axes) for _ in layers],
        *[{0: "batch_size", 1: "total_sequence_length"} if taken else None for taken in extra.values()],
        ModalityRows(*ROW_AXES) if by_modality else None,
    )
    parts = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    return GraphSpec(
        segment_name(model, number),
        SegmentGraph(segment, dtype),
        args,
        ["inputs_embeds" if first else "hidden_states", "attention_mask", "position_ids"]
        + [f"past_key_values.{part}" for part in parts]
        + [name for name, taken in extra.items() if taken]
        + list(ROWS if by_modality else ()),
        ["logits" if last else "last_hidden_state"]
        + [f"present.{part}" for part in parts]
        + ([BEFORE] if segment.taps else []),
        axes,
    )


def _example_rows(batch: int, length: int) -> ModalityRows:
    visual = torch.arange(length).expand(batch, -1) < length // 2
    return ModalityRows(*map(torch.from_numpy, token_rows(visual.numpy())))


def _positions(decoder: DecoderFacts, ids: Tensor) -> tuple[Tensor, dict[int, str]]:
    """Example positions like `ids` (B, S), and their dynamic axes; time, row and column come first, if need be."""
    if decoder.position_axes == 1:
        return ids, {0: "batch_size", 1: "sequence_length"}
    return ids.repeat(decoder.position_axes, 1, 1), {1: "batch_size", 2: "sequence_length"}


def source_modules(models: Sequence[CompressedModel]) -> dict[str, list[SourceModule]]:
    """For each graph but the embedding's, the parts of the PyTorch models that it is made of."""
    found: dict[str, list[SourceModule]] = {}
    for layout, model in enumerate(models):
        for name, module in vision_modules(models, layout).items():
            found.setdefault(name, [module])
        for number, (segment, spec) in enumerate(zip(model.segments, model.plan.segments, strict=True)):
            found.setdefault(segment_name(model, number), []).append(SourceModule(model, segment))
            if spec.enters != "same":
                own = suffix(layout) if spec.enters == "prune" else ""
                handoff = SourceModule(model, model.handoffs[number])
                found.setdefault(selector_name(number) + own, []).append(handoff)
    return found
