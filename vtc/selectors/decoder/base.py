"""The interface of a selector inside the decoder: which of an image's tokens go on after a cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.recipe.selectors.base import DecoderSelectorEntry
from vtc.selectors.base import ascending, kept_mask, padding_last, top_k
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import gather_tokens


@dataclass(frozen=True)
class DecoderTokens:
    """What a cut before a decoder layer sees of I images, each in its row of S tokens.

    Attributes
    ----------
    hidden : Tensor of shape (I, S, E)
        Tokens entering the layer after the cut.
    before : Tensor of shape (I, S, E) or None
        The same tokens entering the layer before the cut, where a selector asked for that.
    attention_mask : Tensor of shape (I, S), int64
    position_ids : Tensor of shape (I, S) or (3, I, S), int64
    visual : Tensor of shape (I, K), int64
        Where the image's tokens stand in its row, ascending.
    queries, query_mask : Tensors of shape (I, Q), int64
        Where the text tokens that ask stand; 0 in the mask is padding.
    padding : Tensor of shape (I, K), bool, or None
        Which of the image's tokens show nothing but a bar around it; None where images get none.
    """

    hidden: Tensor
    before: Tensor | None
    attention_mask: Tensor
    position_ids: Tensor
    visual: Tensor
    queries: Tensor
    query_mask: Tensor
    padding: Tensor | None = None


E = TypeVar("E", bound=DecoderSelectorEntry)


class DecoderSelector(nn.Module, ABC, Generic[E]):
    """Picks `keep` of an image's K tokens at a cut.

    Parameters
    ----------
    entry : DecoderSelectorEntry
        The method's options, and which layer it looks at.
    adapter : VLMAdapter
    after, before : int
        Decoder layers around the cut, as the model numbers them.
    """

    def __init__(self, entry: E, adapter: VLMAdapter, after: int, before: int) -> None:
        super().__init__()
        self.entry = entry
        self.adapter = adapter
        self.layer = before if entry.reads_before else after

    @abstractmethod
    def select(self, tokens: DecoderTokens, keep: int) -> Tensor:
        """Which of the K tokens go on: (I, keep), int64, ascending, unique within each image."""

    def prune(self, tokens: DecoderTokens, keep: int) -> tuple[Tensor, Tensor | None]:
        """The tokens that go on, and what they are now, (I, keep, E), if that is not what they were."""
        return self.select(tokens, keep), None

    # What selectors are made of --------------------------------------------------------------------------------------

    def entering(self, tokens: DecoderTokens) -> Tensor:
        """All tokens (I, S, E) as they enter the layer that is looked at."""
        if not self.entry.reads_before:
            return tokens.hidden
        if tokens.before is None:
            raise AssertionError("a selector that looks at the layer before the cut is given its input")
        return tokens.before

    def attention(self, tokens: DecoderTokens, queries: Tensor, *, rope: bool = True) -> Tensor:
        """Attention of the tokens at `queries` (I, Q) to the visual tokens: (I, Q, K), mean over heads.

        A softmax over what each of them sees in the layer, of which the visual columns are given.
        """
        return self.attention_to_seen(tokens, queries, self.seen(tokens, queries), rope=rope)

    def attention_to_seen(self, tokens: DecoderTokens, queries: Tensor, seen: Tensor, *, rope: bool) -> Tensor:
        """As `attention`, over the tokens that `seen` (I, Q, S) says.

        Without rotary positions, equal tokens that the same queries see get exactly equal attention.
        """
        hidden = self.entering(tokens)
        rows = self.adapter.attention_rows(self.layer, hidden, queries, seen, tokens.position_ids, rope=rope)
        columns = read_at(rows, tokens.visual)
        if rope:
            return columns
        told_apart_by = [gather_tokens(hidden, tokens.visual), read_at(seen.to(hidden.dtype), tokens.visual).mT]
        return read_at(columns, first_equal(torch.cat(told_apart_by, dim=-1)))

    def seen(self, tokens: DecoderTokens, queries: Tensor) -> Tensor:
        """Which of the S tokens those at `queries` (I, Q) see in the layer that is looked at: (I, Q, S), bool."""
        decoder = self.adapter.facts.decoder
        length = tokens.hidden.shape[1]
        places = torch.arange(length, device=tokens.hidden.device)
        seen = places <= queries.unsqueeze(-1)
        if decoder.bidirectional == "prompt":
            seen = torch.ones_like(seen)
        elif decoder.bidirectional == "image":
            inside = kept_mask(tokens.visual, length).bool()
            seen = seen | (torch.gather(inside, 1, queries).unsqueeze(-1) & inside.unsqueeze(1))
        if self.layer in decoder.window_layers and not decoder.blocks_beyond_window:
            own = torch.gather(tokens.position_ids, 1, queries)
            seen = seen & (own.unsqueeze(-1) - tokens.position_ids.unsqueeze(1) < decoder.window)
        return seen & tokens.attention_mask.bool().unsqueeze(1)

    def keys(self, tokens: DecoderTokens) -> Tensor:
        """Keys of all tokens, rotated by their positions: (I, S, Hkv, Dh)."""
        return self.adapter.decoder_keys(self.layer, self.entering(tokens), tokens.position_ids)

    def visual_states(self, tokens: DecoderTokens) -> Tensor:
        """The image's tokens (I, K, E) as they enter the layer after the cut."""
        return gather_tokens(tokens.hidden, tokens.visual)


class DecoderScorer(DecoderSelector[E]):
    """A score per visual token plus top-k; of equal scores the lower index wins."""

    @abstractmethod
    def score(self, tokens: DecoderTokens) -> Tensor:
        """Importance of each visual token, (I, K), float32; higher is kept."""

    def select(self, tokens: DecoderTokens, keep: int) -> Tensor:
        return ascending(top_k(padding_last(self.score(tokens), tokens.padding), keep))


class DecoderMerger(DecoderSelector[E]):
    """A selector whose kept tokens also take in what they stand for."""

    @abstractmethod
    def merge(self, tokens: DecoderTokens, keep: int) -> tuple[Tensor, Tensor]:
        """Choose and merge: indices (I, keep), ascending, and the states (I, keep, E) that stand there now."""

    def select(self, tokens: DecoderTokens, keep: int) -> Tensor:
        return self.merge(tokens, keep)[0]

    def prune(self, tokens: DecoderTokens, keep: int) -> tuple[Tensor, Tensor | None]:
        return self.merge(tokens, keep)


def mean_over_queries(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean (I, K) over the tokens that ask, of rows (I, Q, K) and weights (I, Q)."""
    return (rows * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
