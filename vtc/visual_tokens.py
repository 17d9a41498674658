"""The visual tokens of a batch of images on their way from the encoder to the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtc.recipe.needs import Reading


@dataclass(frozen=True)
class TextEmbeddings:
    """What is asked about each image, in the decoder's space.

    Attributes
    ----------
    states : Tensor of shape (B, T, E)
        Input embeddings of the text after the image.
    mask : Tensor of shape (B, T), int64
        1 for a token, 0 for padding.
    """

    states: Tensor
    mask: Tensor

    @property
    def mean(self) -> Tensor:
        """The whole question as one vector, (B, E), float32: the mean of the states over real tokens, 0 without any."""
        weights = self.mask.float().unsqueeze(-1)
        return (self.states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens, and what stages may ask about them.

    Attributes
    ----------
    features : Tensor of shape (B, N, D)
        Encoder outputs before the projector.
    indices : Tensor of shape (B, N), int64
        Ascending places of the tokens among all of an image: on its grid, or on its grids one after the other with
        separators between (on smaller grids, once a frequency filter has made those).
    grids : tuple of (int, int)
        Rows and columns of the grids that the tokens fill, one after the other; none once tokens have been pruned.
    readings : mapping of Reading to Tensor
        What selectors asked the encoder to note.
    projected : Tensor of shape (B, N, E) or None
        The tokens in the decoder's space, where a selector asked for them.
    text : TextEmbeddings or None
        The question, where a selector asked for it.
    deepstack : Tensor of shape (B, N, C) or None
        Outputs of earlier encoder layers that go with the tokens into the decoder (DeepStack).
    padding : Tensor of shape (B, N), bool, or None
        Which tokens show nothing but the bars around an image of another aspect ratio; None where images get none.
    image : Tensor of shape (B, C) or None
        One vector for the whole of each image, where a projector has made it for its router.
    """

    features: Tensor
    indices: Tensor
    grids: tuple[tuple[int, int], ...] = ()
    readings: Mapping[Reading, Tensor] = field(default_factory=dict)
    projected: Tensor | None = None
    text: TextEmbeddings | None = None
    deepstack: Tensor | None = None
    padding: Tensor | None = None
    image: Tensor | None = None

    @property
    def grids_or_row(self) -> tuple[tuple[int, int], ...]:
        """The grids; tokens that have lost theirs are one row."""
        return self.grids or ((1, self.features.shape[1]),)

    def tensors(self) -> dict[str, Tensor]:
        """All that differs from image to image, by name; each has B rows. The question is none of it.

        Tokens that fill grids stand at the same places in every image.
        """
        own = {name: getattr(self, name) for name in ("features", "projected", "deepstack", "padding", "image")}
        if not self.grids:
            own["indices"] = self.indices
        readings = {f"{reading.kind}_{reading.layer}": value for reading, value in self.readings.items()}
        return {name: value for name, value in own.items() if value is not None} | readings

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> VisualTokens:
        """The same of other images, by what :meth:`tensors` is of those."""
        given: dict[str, Any] = dict(tensors)
        readings = {reading: given.pop(f"{reading.kind}_{reading.layer}") for reading in self.readings}
        features = given["features"]
        given.setdefault("indices", self.indices[:1].to(features.device).expand(features.shape[0], -1))
        return replace(self, readings=readings, **given)

    def keep(self, chosen: Tensor) -> VisualTokens:
        """The tokens at positions `chosen` (B, K) among these."""
        return replace(
            self,
            features=gather_tokens(self.features, chosen),
            indices=torch.gather(self.indices, 1, chosen),
            grids=(),
            readings={reading: _gather_reading(reading, value, chosen) for reading, value in self.readings.items()},
            projected=None if self.projected is None else gather_tokens(self.projected, chosen),
            deepstack=None if self.deepstack is None else gather_tokens(self.deepstack, chosen),
            padding=None if self.padding is None else torch.gather(self.padding.long(), 1, chosen) > 0,
        )


def in_grids(
    features: Tensor,
    grids: Sequence[tuple[int, int]],
    places: Sequence[int] | None = None,
    readings: Mapping[Reading, Tensor] | None = None,
) -> VisualTokens:
    """All tokens (B, N, D) of grids, one after the other; `places` where they do not stand without gaps."""
    device = features.device
    numbers = torch.arange(features.shape[1], device=device) if places is None else torch.tensor(places, device=device)
    return VisualTokens(features, numbers.expand(features.shape[0], -1), tuple(grids), readings or {})


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens (B, K, D) of (B, N, D) at indices (B, K)."""
    return torch.gather(tokens, 1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def gather_positions(position_ids: Tensor, indices: Tensor) -> Tensor:
    """The positions ([3,] B, T) of ([3,] B, S) at indices (B, T); three axes are time, row and column."""
    return torch.gather(position_ids, -1, indices.expand(*position_ids.shape[:-1], indices.shape[-1]))


def _gather_reading(reading: Reading, value: Tensor, chosen: Tensor) -> Tensor:
    if reading.kind == "cls_state":
        return value
    if value.dim() == 2:
        return torch.gather(value, 1, chosen)
    rows = gather_tokens(value, chosen)
    if reading.kind == "patch_attention":
        return torch.gather(rows, 2, chosen.unsqueeze(1).expand(-1, chosen.shape[1], -1))
    return rows
