"""Images that a frozen encoder sees once: what it makes of them is kept as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vtc.compressed.vision_encoder import VisionEncoder
from vtc.visual_tokens import TextEmbeddings, VisualTokens

Pixels = Callable[[Sequence[int]], Tensor]
"""Pixels (images, ...) of images by number."""


class EncodedImages:
    """Visual tokens before any stage, by the number of an image.

    Parameters
    ----------
    encoder : VisionEncoder
        Whose layers run, and whose readings are noted.
    pixels : callable
    memory : int
        Bytes that may be kept.
    """

    def __init__(self, encoder: VisionEncoder, pixels: Pixels, memory: int) -> None:
        self.encoder, self.pixels = encoder, pixels
        self._left = memory
        self._kept: dict[int, VisualTokens] = {}

    @torch.no_grad()
    def tokens(self, numbers: Sequence[int]) -> VisualTokens:
        """Visual tokens of images, spans of an image one after the other."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        found = dict(self._kept)
        if missing:
            encoded = self.encoder.tokens(self.pixels(missing))
            spans = encoded.features.shape[0] // len(missing)
            for place, number in enumerate(missing):
                found[number] = mapped(encoded, _rows(place * spans, spans))
                self._keep(number, found[number])
        return stacked([found[number] for number in numbers])

    def _keep(self, number: int, tokens: VisualTokens) -> None:
        size = 0

        def count(value: Tensor) -> Tensor:
            nonlocal size
            size += value.nbytes
            return value

        mapped(tokens, count)
        if size <= self._left:
            self._left -= size
            self._kept[number] = tokens


class Seen(nn.Module):
    """Stands in for a vision encoder, and takes numbers of images (B, 1) in place of pixels.

    Parameters
    ----------
    images : EncodedImages
    vision : VisionEncoder
        Of the same encoder layers; its stages and projector run each time.
    """

    def __init__(self, images: EncodedImages, vision: VisionEncoder) -> None:
        super().__init__()
        self.images = images
        self.vision = vision
        self.needs = vision.needs

    def forward(self, numbers: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, ...]:
        """As :class:`~vtc.compressed.vision_encoder.VisionEncoder` does."""
        return self.vision.compress(replace(self.images.tokens(numbers.flatten().tolist()), text=text))


def _rows(first: int, count: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[first : first + count].clone()


def mapped(tokens: VisualTokens, change: Callable[[Tensor], Tensor]) -> VisualTokens:
    """Visual tokens of whose every tensor something else is made."""
    return replace(
        tokens,
        features=change(tokens.features),
        indices=change(tokens.indices),
        readings={reading: change(value) for reading, value in tokens.readings.items()},
        deepstack=None if tokens.deepstack is None else change(tokens.deepstack),
        padding=None if tokens.padding is None else change(tokens.padding),
    )


def stacked(parts: Sequence[VisualTokens]) -> VisualTokens:
    """Visual tokens of several images, one after the other."""
    first = parts[0]

    def joined(get: Callable[[VisualTokens], Tensor | None]) -> Tensor | None:
        values = [value for part in parts if (value := get(part)) is not None]
        return torch.cat(values) if values else None

    readings = {reading: torch.cat([part.readings[reading] for part in parts]) for reading in first.readings}
    return replace(
        first,
        features=torch.cat([part.features for part in parts]),
        indices=torch.cat([part.indices for part in parts]),
        readings=readings,
        deepstack=joined(lambda part: part.deepstack),
        padding=joined(lambda part: part.padding),
    )
