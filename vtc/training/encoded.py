"""Images that a frozen encoder sees once: what it makes of them is kept as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from vtc.compressed.vision_encoder import VisionEncoder
from vtc.visual_tokens import TextEmbeddings, VisualTokens

Value = TypeVar("Value")
Pixels = Callable[[Sequence[int]], Tensor]
"""Pixels (images, ...) of images by number."""


class Kept(Generic[Value]):
    """Values by number, each made once as far as memory allows.

    Parameters
    ----------
    make : callable
        Values of some numbers, in their order.
    size : callable
        Bytes of a value.
    memory : int
        Bytes that may be kept.
    """

    def __init__(
        self, make: Callable[[Sequence[int]], Sequence[Value]], size: Callable[[Value], int], memory: int
    ) -> None:
        self._make, self._size, self._left = make, size, memory
        self._kept: dict[int, Value] = {}

    def get(self, numbers: Sequence[int]) -> list[Value]:
        """The values of these numbers."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        made = dict(zip(missing, self._make(missing), strict=True)) if missing else {}
        found = [made[number] if number in made else self._kept[number] for number in numbers]
        for number, value in made.items():
            if self._size(value) <= self._left:
                self._left -= self._size(value)
                self._kept[number] = value
        return found


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
        self._kept = Kept(self._encode, lambda tokens: sum(value.nbytes for value in tokens.tensors().values()), memory)

    def tokens(self, numbers: Sequence[int]) -> VisualTokens:
        """Visual tokens of images, spans of an image one after the other."""
        return joined(self._kept.get(numbers), torch.cat)

    @torch.no_grad()
    def _encode(self, numbers: Sequence[int]) -> list[VisualTokens]:
        encoded = self.encoder.tokens(self.pixels(numbers))
        spans = encoded.features.shape[0] // len(numbers)
        return [joined([encoded], rows_of(place * spans, spans)) for place in range(len(numbers))]


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


def rows_of(first: int, count: int) -> Callable[[list[Tensor]], Tensor]:
    """For :func:`joined`: a copy of some rows of one."""
    return lambda values: values[0][first : first + count].clone()


def joined(parts: Sequence[VisualTokens], join: Callable[[list[Tensor]], Tensor]) -> VisualTokens:
    """One of several, each of whose tensors is made of theirs."""
    named = [part.tensors() for part in parts]
    return parts[0].with_tensors({name: join([one[name] for one in named]) for name in named[0]})
