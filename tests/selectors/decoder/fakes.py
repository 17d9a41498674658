"""Stand-ins for a decoder: attention from a stored map, or from stored weights without norms and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tests.sizes import SMALL
from vtc.models.base import VLMAdapter
from vtc.selectors.decoder.base import DecoderTokens
from vtc.visual_tokens import gather_tokens

GOLDENS = Path(__file__).parents[2] / "goldens"


def golden(name: str) -> dict[str, Any]:
    """Arrays of a golden file, as tensors."""
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(GOLDENS / f"{name}.npz").items()}


class FakeAdapter:
    """What selectors ask of an adapter.

    Parameters
    ----------
    maps : dict of int to Tensor of shape (B, H, S, S)
        Attention of some layers, softmaxed and causal.
    keys : dict of int to Tensor of shape (B, S, H, Dh)
        Keys of some layers.
    """

    def __init__(self, maps: dict[int, Tensor] | None = None, keys: dict[int, Tensor] | None = None) -> None:
        self.maps = maps or {}
        self.stored_keys = keys or {}
        self.final_norm = nn.Identity()
        self.facts = SMALL  # which looks back, without windows
        self.query_tokens: list[tuple[int, bool]] = []

    def attention_rows(
        self, index: int, hidden: Tensor, queries: Tensor, seen: Tensor, position_ids: Tensor, *, rope: bool = True
    ) -> Tensor:
        self.query_tokens.append((index, rope))
        return gather_tokens(self.maps[index].mean(dim=1), queries)

    def decoder_keys(self, index: int, hidden: Tensor, position_ids: Tensor) -> Tensor:
        return self.stored_keys[index]


class LinearAdapter(FakeAdapter):
    """Queries and keys come from linear layers of weights `wq` and `wk` (H * Dh, E), the same in every layer."""

    def __init__(self, wq: Tensor, wk: Tensor, heads: int) -> None:
        super().__init__()
        self.wq, self.wk, self.heads = wq, wk, heads

    def attention_rows(
        self, index: int, hidden: Tensor, queries: Tensor, seen: Tensor, position_ids: Tensor, *, rope: bool = True
    ) -> Tensor:
        self.query_tokens.append((index, rope))
        key = self.decoder_keys(index, hidden, position_ids).transpose(1, 2)
        query = self._split(gather_tokens(hidden, queries) @ self.wq.T.to(hidden.dtype)).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)).float() * key.shape[-1] ** -0.5
        scores = torch.where(seen.unsqueeze(1), scores, torch.finfo(torch.float32).min)
        return torch.softmax(scores, dim=-1).mean(dim=1)

    def decoder_keys(self, index: int, hidden: Tensor, position_ids: Tensor) -> Tensor:
        return self._split(hidden @ self.wk.T.to(hidden.dtype))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, -1)


def adapter(fake: FakeAdapter) -> VLMAdapter:
    return cast(VLMAdapter, fake)


def decoder_tokens(hidden: Tensor, start: int, count: int, before: Tensor | None = None) -> DecoderTokens:
    """Rows (I, S, E) in which `count` visual tokens stand from `start` on and all text after them asks."""
    images, length = hidden.shape[:2]
    queries = torch.arange(start + count, length).expand(images, -1)
    return DecoderTokens(
        hidden=hidden,
        before=hidden if before is None else before,
        attention_mask=torch.ones(images, length, dtype=torch.int64),
        position_ids=torch.arange(length).expand(images, -1),
        visual=torch.arange(start, start + count).expand(images, -1),
        queries=queries,
        query_mask=torch.ones_like(queries),
    )
