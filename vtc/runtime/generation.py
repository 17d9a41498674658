"""Answers on their way: a batch that is prefilled once and then goes on token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vtc.bundle.facts import ServedImage
from vtc.inputs.generation import RuledLogits
from vtc.runtime.budgets import entropies
from vtc.runtime.decoder import Cache, Logits
from vtc.runtime.interface import Array, IntArray
from vtc.runtime.sampling import Sampler
from vtc.runtime.text import Text


@dataclass(frozen=True)
class Timings:
    """What a batch took. The rows of a batch share it.

    Attributes
    ----------
    preprocess_ms : float
        Resizing, cropping and normalising images; tokenising prompts.
    ttft_ms : float
        From pixels and token ids to the first token: vision graph with its selection, embedding, prefill of
        every segment. Preprocessing is not in it.
    vision_ms : float
        The share of `ttft_ms` of the vision graphs that were run.
    prefill_ms : float
        The decoder's share of `ttft_ms`: every segment, selection between them, and the head.
    step_ms : tuple of float
        Each further token.
    segment_lengths : tuple of int
        Tokens that each decoder segment saw in prefill, padding included, from its tensors' shapes.
    kv_bytes : int
        Keys and values of the whole batch after prefill, from their tensors.
    """

    preprocess_ms: float
    ttft_ms: float
    vision_ms: float
    prefill_ms: float
    step_ms: tuple[float, ...]
    segment_lengths: tuple[int, ...]
    kv_bytes: int


@dataclass(frozen=True)
class Batch:
    """Prompts that are ready to run.

    Attributes
    ----------
    served : ServedImage
        What their images are.
    pixels : array of shape (images, ...), or None
    input_ids, mask : arrays of shape (B, S)
        Left-padded.
    new_tokens : int
        Tokens of an answer at most.
    """

    served: ServedImage
    pixels: Array | None
    input_ids: IntArray
    mask: IntArray
    new_tokens: int


@dataclass(frozen=True)
class Prefilled:
    """Prompts that were run through a model.

    Attributes
    ----------
    logits : array of shape (B, V)
    cache : Cache
    keep_indices : array of shape (spans, K)
        Places of the visual tokens that entered the decoder among all of their span.
    vision_ms, prefill_ms : float
        See :class:`Timings`.
    """

    logits: Logits
    cache: Cache
    keep_indices: IntArray
    vision_ms: float
    prefill_ms: float


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes
    ----------
    token_ids : list of int
        Without the end token.
    text : str
    timings : Timings
        What the batch took.
    budgets : tuple of int
        Budgets of visual tokens at which it was asked, one after the other; the last one answered. None where there is
        one for all questions.
    """

    token_ids: list[int]
    text: str
    timings: Timings
    budgets: tuple[int, ...] = ()


class Steps(Protocol):
    """What a running generation needs of a model."""

    text: Text

    def prefill(self, batch: Batch) -> Prefilled:
        """Run prompts."""

    def step(self, tokens: IntArray, cache: Cache) -> Logits:
        """Run one more token of each row, (B,); the cache moves on. Returns logits (B, V)."""


class RunningGeneration:
    """A batch on its way: prefilled when made, one token a row with each turn of the iteration.

    Parameters
    ----------
    model : Steps
    preprocess_ms : float
    batch : Batch
    max_new_tokens : int
    sampler : Sampler

    Attributes
    ----------
    token_ids : list of list of int
        So far, without end tokens.
    """

    def __init__(
        self,
        model: Steps,
        preprocess_ms: float,
        batch: Batch,
        max_new_tokens: int,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._left = max_new_tokens
        self._preprocess_ms = preprocess_ms
        begin = time.perf_counter()
        self._prefilled = model.prefill(batch)
        self._earlier: tuple[RunningGeneration, ...] = ()
        self._budget = batch.served.budget
        self._cache = self._prefilled.cache
        facts = model.text.facts
        self._ruled = RuledLogits(facts.rules, facts.eos_token_ids, batch.input_ids, batch.mask, max_new_tokens)
        self._next = self._chosen(self._prefilled.logits)
        self._ttft_ms = milliseconds_since(begin)
        self._step_ms: list[float] = []
        self._lengths, self._kv_bytes = self._cache.lengths, self._cache.bytes
        self._ends = frozenset(facts.eos_token_ids)
        self._open = [True] * len(batch.input_ids)
        self.token_ids: list[list[int]] = [[] for _ in batch.input_ids]

    def __iter__(self) -> Iterator[list[int | None]]:
        """Yield B tokens a turn, None for a row that has ended, until all have or the limit is reached."""
        while True:
            turn: list[int | None] = [None] * len(self.token_ids)
            for number, token in enumerate(self._next.tolist()):
                self._open[number] = self._open[number] and token not in self._ends
                if self._open[number]:
                    self.token_ids[number].append(token)
                    turn[number] = token
            if any(self._open):
                yield turn
            self._left -= 1
            full = int(self._cache.following.max()) >= self._model.text.facts.context
            if not any(self._open) or self._left == 0 or full:
                return
            begin = time.perf_counter()
            self._next = self._chosen(self._model.step(self._next, self._cache))
            self._step_ms.append(milliseconds_since(begin))

    def _chosen(self, logits: Logits) -> IntArray:
        tokens = self._sampler(self._ruled(logits))
        self._ruled.took(tokens)
        return tokens

    @property
    def entropies(self) -> list[float]:
        """Entropy in nats of what each row's first token was drawn from, before any rule."""
        found: list[float] = entropies(self._prefilled.logits).tolist()
        return found

    def after(self, earlier: Sequence[RunningGeneration]) -> RunningGeneration:
        """Count the time of prefills of the same batch at smaller budgets, whose answers were given up."""
        self._earlier = tuple(earlier)
        return self

    @property
    def budgets(self) -> tuple[int, ...]:
        """See :class:`Generation`."""
        return tuple(one._budget for one in (*self._earlier, self) if one._budget is not None)

    def finish(self) -> list[Generation]:
        """Run to the end."""
        for _ in self:
            pass
        timings, budgets = self.timings, self.budgets
        return [Generation(ids, self._model.text.decode(ids), timings, budgets) for ids in self.token_ids]

    def stream(self, row: int = 0) -> Iterator[str]:
        """Text of one row, piece by piece; joined, it is the answer that :meth:`finish` gives."""
        text = self._model.text.stream()
        for turn in self:
            token = turn[row]
            if token is not None and (piece := text.step(token)):
                yield piece
        if rest := text.end():
            yield rest

    @property
    def timings(self) -> Timings:
        """What it took so far, with what was tried before it."""
        passes = (*self._earlier, self)
        return Timings(
            preprocess_ms=sum(one._preprocess_ms for one in passes),
            ttft_ms=sum(one._ttft_ms for one in passes),
            vision_ms=sum(one._prefilled.vision_ms for one in passes),
            prefill_ms=sum(one._prefilled.prefill_ms for one in passes),
            step_ms=tuple(self._step_ms),
            segment_lengths=self._lengths,
            kv_bytes=self._kv_bytes,
        )


def milliseconds_since(begin: float) -> float:
    """Time since a reading of the performance counter."""
    return (time.perf_counter() - begin) * 1000
