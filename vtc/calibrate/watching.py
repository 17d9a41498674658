"""Prompts that run through a mixture of experts while something watches its routers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from vtc.compressed.following import following
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.models.placing import check_in_memory
from vtc.models.routers import Routed, Tokens, check_mixture, watching_routers
from vtc.progress import Report

BATCH = 8
"""Prompts at once."""


class Watcher(Protocol):
    """What sees the tokens of each batch, and what becomes of them.

    Values (B, S, C) go with the tokens through the decoder: the first three are the soft modality scores, text and
    visual, and whether a token is visual.
    """

    def begin(self, visual: Tensor, real: Tensor, first: int) -> Tensor:
        """Give the values of a batch: which tokens (B, S) are visual, which are real, the first prompt's number."""

    def enter(self, values: Tensor, mask: Tensor, position_ids: Tensor) -> Tokens:
        """Take note of the tokens that enter a segment."""

    def leave(self, values: Tensor) -> Tensor:
        """Give the values that tokens have when they leave it."""

    def add(self, routed: Routed) -> None:
        """Take in what a layer's router decided."""


def watch(model: CompressedModel, samples: Sequence[Sample], watcher: Watcher, words: str, report: Report) -> None:
    """Run prompts, and let a watcher see what their tokens are and what becomes of them."""
    check_mixture(model.adapter)
    check_in_memory(model.adapter.model, "experts are watched")
    with (
        watching_routers(model.adapter, watcher.add) as tell,
        following(model, lambda *entering: tell(watcher.enter(*entering)), watcher.leave) as follow,
    ):
        for first in range(0, len(samples), BATCH):
            report(words, first, len(samples))
            batch = samples[first : first + BATCH]
            ids, mask, pixels = model.inputs([s.images for s in batch], [s.prompt for s in batch])
            follow(watcher.begin(ids == model.adapter.image_token_id, mask.bool(), first))
            model.prefill(ids, mask, pixels)
    report(words, len(samples), len(samples))
