"""Pixels to projected visual tokens, with the recipe's encoder stages in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import cast

import torch
from torch import Tensor, nn

from vtc.compressed.assembly import assemble, with_separators
from vtc.compressed.padding import padding_of
from vtc.compressed.readings import read_tokens
from vtc.facts.layout import Grid, single_view
from vtc.models.base import VLMAdapter
from vtc.recipe.needs import NOTHING, Needs
from vtc.stages.base import TokenStage
from vtc.visual_tokens import TextEmbeddings, VisualTokens, in_grids


class VisionEncoder(nn.Module):
    """Vision encoder, stages and projector; exported as `vision_encoder.onnx`, or as that and `text_reader.onnx`.

    Parameters
    ----------
    adapter : VLMAdapter
    layers : sequence of int
        Encoder layers to run, ascending; those after the feature layer are never needed.
    stages : sequence of TokenStage
    needs : Needs
        What the caller looks at; what the stages look at comes on top.
    tells_padding : bool
        Give out which tokens are padding too: cuts inside the decoder want to know.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        layers: Sequence[int],
        stages: Sequence[TokenStage] = (),
        needs: Needs = NOTHING,
        tells_padding: bool = False,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.layers = tuple(layers)
        self.tells_padding = tells_padding
        self.stages = nn.ModuleList(stages)
        self.needs = reduce(or_, (stage.needs for stage in stages), needs)

    @property
    def read_layers(self) -> list[int]:
        """Layers whose input is wanted, of those that run; ascending."""
        return sorted({reading.layer for reading in self.needs.readings} & set(self.layers))

    def tokens(self, pixel_values: Tensor) -> VisualTokens:
        """All visual tokens of images (B, ...) before any stage, one row for each of their spans."""
        hidden = self.adapter.embed_patches(pixel_values)
        inputs: dict[int, Tensor] = {}
        # In place of a layer that a recipe drops, the output of the one before it goes along.
        sources = [
            max((run for run in self.layers if run <= layer), default=min(self.layers))
            for layer in self.adapter.deepstack_layers
        ]
        outputs: dict[int, Tensor] = {}
        for layer in self.layers:
            if layer in self.read_layers:
                inputs[layer] = hidden
            hidden = self.adapter.encoder_layer(layer, hidden)
            if layer in sources:
                outputs[layer] = hidden
        tokens = self.with_readings(hidden, inputs)
        if len(self.stages) or self.tells_padding:
            tokens = replace(tokens, padding=padding_of(self.adapter, pixel_values))
        if not sources:
            return tokens
        deepstack = torch.cat([self.adapter.view_tokens(outputs[layer]) for layer in sources], dim=-1)
        return replace(tokens, deepstack=assemble(deepstack, self.adapter.facts.layout))

    def with_readings(self, hidden: Tensor, inputs: Mapping[int, Tensor]) -> VisualTokens:
        """Visual tokens with the readings that selectors need.

        Parameters
        ----------
        hidden : Tensor of shape (views, [1 +] n, D)
            Output of the last layer that runs.
        inputs : mapping of layer to Tensor of the same shape
            Inputs of the layers that are read; a layer that is not among them reads `hidden`.
        """
        layout = self.adapter.facts.layout
        readings = {
            reading: read_tokens(self.adapter, reading, inputs.get(reading.layer, hidden))
            for reading in self.needs.readings
        }
        features = self.adapter.view_features(hidden)
        if layout.resized:  # which the model does after the projector
            features = self.adapter.projector(features)
        return in_grids(assemble(features, layout), layout.grids, layout.places, readings)

    def through_stages(self, tokens: VisualTokens) -> VisualTokens:
        """Visual tokens after the last stage."""
        return self._through(self._stages, tokens)

    def _through(self, stages: Iterable[TokenStage], tokens: VisualTokens) -> VisualTokens:
        for stage in stages:
            tokens = stage(self._ready(stage, tokens))
        return tokens

    def _ready(self, stage: TokenStage, tokens: VisualTokens) -> VisualTokens:
        """Tokens with what a stage looks at."""
        if stage.needs.projected and tokens.projected is None:
            return replace(tokens, projected=self._project(tokens.features))
        return tokens

    @property
    def _stages(self) -> list[TokenStage]:
        return list(cast(Iterable[TokenStage], self.stages))

    def before_question(self, pixel_values: Tensor) -> VisualTokens:
        """What is made of images (B, ...) whatever is asked about them.

        It is all up to the first stage that reads the question, and what that stage does without it.
        """
        before, reader, after = self._around_question()
        tokens = self._through(before, self.tokens(pixel_values))
        begun = reader.begin(self._ready(reader, tokens))
        wanted = {reading for stage in (reader, *after) for reading in stage.needs.readings}
        return replace(begun, readings={one: value for one, value in begun.readings.items() if one in wanted})

    def with_question(self, begun: VisualTokens) -> tuple[Tensor, ...]:
        """Go on after :meth:`before_question`, now that `text` is known; returns as :meth:`forward` does."""
        _, reader, after = self._around_question()
        return self._given(self._through(after, reader.finish(begun)))

    def _around_question(self) -> tuple[list[TokenStage], TokenStage, list[TokenStage]]:
        """The stages before the first that reads the question, that one, and those after it."""
        first = next(number for number, stage in enumerate(self._stages) if stage.needs.text)
        return self._stages[:first], self._stages[first], self._stages[first + 1 :]

    def _project(self, features: Tensor) -> Tensor:
        return features if self.adapter.facts.layout.resized else cast(Tensor, self.adapter.projector(features))

    def compress(self, tokens: VisualTokens) -> tuple[Tensor, ...]:
        """Stages and projector; returns as :meth:`forward` does."""
        return self._given(self.through_stages(tokens))

    def _given(self, tokens: VisualTokens) -> tuple[Tensor, ...]:
        """What goes into the decoder of tokens after the last stage."""
        layout = self.adapter.facts.layout
        projected = self.in_decoder_space(tokens)
        padding = self._padding(tokens)
        if self.stages or layout.tokens == layout.selectable:
            return (projected, tokens.indices, *padding)
        places = torch.arange(layout.tokens, device=projected.device).expand(projected.shape[0], -1)
        padding = [with_separators(marks.unsqueeze(-1), marks.new_zeros(1), layout).squeeze(-1) for marks in padding]
        return (with_separators(projected, self.adapter.separator, layout), places, *padding)

    def in_decoder_space(self, tokens: VisualTokens) -> Tensor:
        """Tokens in the decoder's space, (spans, K, E); after them their DeepStack features."""
        # The projector treats each token alone, so it runs on the kept ones only, unless a selector wanted all.
        projected = self._project(tokens.features) if tokens.projected is None else tokens.projected
        if tokens.deepstack is None:
            return projected
        return torch.cat([projected, self.adapter.project_deepstack(tokens.deepstack)], dim=-1)

    def _padding(self, tokens: VisualTokens) -> list[Tensor]:
        """Which tokens are padding, (spans, K), int64, if that is to be told."""
        if not self.tells_padding:
            return []
        return [torch.zeros_like(tokens.indices) if tokens.padding is None else tokens.padding.long()]

    def forward(self, pixel_values: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, ...]:
        """Encode images.

        Parameters
        ----------
        pixel_values : Tensor of shape (images, *shape of one image's pixels)
        text : TextEmbeddings or None
            The questions, one for each span, where `needs.text` says so.

        Returns
        -------
        image_features : Tensor of shape (spans, K, E)
            Tokens in the decoder's space; after them their DeepStack features (see
            :class:`vtc.facts.model.DecoderFacts`).
        keep_indices : Tensor of shape (spans, K), int64
            Their places among all of the span, ascending.
        padding : Tensor of shape (spans, K), int64
            1 for those that show nothing but a bar; only where `tells_padding`. A stage that makes tokens of another
            kind ends what is known of them: 0.
        """
        return self.compress(replace(self.tokens(pixel_values), text=text))


class DownsampledImage(nn.Module):
    """Baseline: shrink the image until the encoder itself gives the wanted number of tokens.

    Parameters
    ----------
    adapter : VLMAdapter
        Whose images are one view each, of one token a patch.
    layers : sequence of int
        Encoder layers to run.
    grid : (int, int)
        Rows and columns of tokens wanted.
    """

    def __init__(self, adapter: VLMAdapter, layers: Sequence[int], grid: Grid) -> None:
        super().__init__()
        patch = adapter.facts.encoder.patch_size
        self.size = (grid[0] * patch, grid[1] * patch)
        self.encoder = VisionEncoder(adapter.with_layout(single_view(self.size, grid)), layers)
        self.needs = NOTHING

    def forward(self, pixel_values: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, Tensor]:
        """Encode images (B, 3, H, W) at the smaller size; see :class:`VisionEncoder`."""
        small = nn.functional.interpolate(pixel_values, self.size, mode="bicubic", antialias=True)
        features, indices = self.encoder(small)
        return features, indices


class NoImage(nn.Module):
    """Baseline: the decoder sees the question alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.needs = NOTHING
        self.width = width

    def forward(self, pixel_values: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, Tensor]:
        """No tokens: (B, 0, E) and (B, 0)."""
        images, where = pixel_values.shape[0], pixel_values.device
        none = torch.zeros(images, 0, self.width, dtype=pixel_values.dtype, device=where)
        return none, torch.zeros(images, 0, dtype=torch.long, device=where)
