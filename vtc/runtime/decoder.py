"""The decoder of a bundle: its segments in turn, each with a KV cache of its own length."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.bundle.facts import SegmentFacts, ServedImage
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError
from vtc.inputs.positions import positions
from vtc.inputs.schedule import SegmentRule, TokenRows, schedule, token_rows
from vtc.runtime.interface import DTYPES, Array, Backend, IntArray, LoadedGraph, Past, Tensor
from vtc.runtime.past import PRESENT

BEFORE = "before_hidden_states"
"""Output of a segment whose last layer a selector looks at: what enters that layer."""
HANDED_OVER = "hidden_states"
"""Output of a graph between segments."""
PRUNED = (HANDED_OVER, "kept_position_ids", "keep_indices")
"""Outputs of a selector that prunes."""
PADDING = "padding"
"""Input of such a selector, where images get bars: which visual tokens show nothing else. The vision graph gives it."""
KEPT_PADDING = "kept_padding"
"""The same of the tokens that stay, for the next selector."""
ROWS = ("text_rows", "visual_rows", "row_order")
"""Inputs of a segment whose visual tokens have experts of their own: see :class:`vtc.inputs.schedule.TokenRows`."""
Logits = NDArray[np.float32]


@dataclass
class Cache:
    """A running generation.

    Attributes
    ----------
    past : list over segments of Past
        Keys and values, on the device.
    following : array of shape (B,)
        Position of the next token.
    kept : list of Tensor of shape (spans, K)
        For each cut inside the decoder, which of the tokens that came to it stayed; on the device.
    """

    past: list[Past]
    following: IntArray
    kept: list[Tensor]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each segment's cache."""
        return tuple(past.length for past in self.past)

    @property
    def bytes(self) -> int:
        """Size of all keys and values of the batch."""
        return sum(past.bytes for past in self.past)


class Segment:
    """One segment's graph, and what to call its tensors.

    Parameters
    ----------
    graph : LoadedGraph
    """

    def __init__(self, graph: LoadedGraph) -> None:
        self.graph = graph
        self.hidden = next(iter(self.graph.inputs))
        self.result = next(name for name in self.graph.outputs if not name.startswith(PRESENT) and name != BEFORE)
        self.takes_key_positions = "key_position_ids" in self.graph.inputs
        self.takes_rows = set(ROWS) <= set(self.graph.inputs)

    def run(
        self,
        past: Past,
        hidden: Tensor | Array,
        mask: Tensor | IntArray,
        position_ids: Tensor | IntArray,
        host: bool,
        blocks: Tensor | IntArray | None = None,
        key_positions: Tensor | IntArray | None = None,
        rows: Mapping[str, Tensor | IntArray] = MappingProxyType({}),
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Run S new tokens after P cached ones.

        Parameters
        ----------
        past : Past
        hidden : Tensor or array of shape (B, S, E)
        mask : Tensor or array of shape (B, P + S)
        position_ids : Tensor or array of shape (B, S) or (3, B, S)
        host : bool
            Whether the result is wanted on the host.
        blocks, key_positions : Tensors or arrays of shape (B, P + S) or None
            Where the graph takes them.
        rows : mapping of str to Tensor or array
            Likewise, those of `ROWS`.

        Returns
        -------
        result : Tensor
            Hidden states (B, S, E), or in the last segment logits (B, 1, V).
        present : list of Tensor
            What became of the cache.
        before : Tensor or None
            Hidden states (B, S, E) entering the last layer, for a selector after this segment.
        """
        feeds: dict[str, Tensor | Array] = {self.hidden: hidden, "attention_mask": mask, "position_ids": position_ids}
        feeds |= {} if blocks is None else {"block_ids": blocks}
        feeds |= {} if key_positions is None else {"key_position_ids": key_positions}
        feeds |= rows
        outputs, present = past.run(feeds, host=(self.result,) if host else ())
        return outputs[self.result], present, outputs.get(BEFORE)


class Decoder:
    """The segments and the graphs between them.

    Parameters
    ----------
    manifest : Manifest
    backend : Backend
    embedding : LoadedGraph
        Token ids to embeddings, which a decoding step begins with.
    """

    def __init__(self, manifest: Manifest, backend: Backend, embedding: LoadedGraph) -> None:
        self.facts = manifest.generation
        self.plan = manifest.segments
        self.axes = manifest.images[0].positions.axes
        self.embedding = embedding
        self.segments = [Segment(backend.open(segment.graph)) for segment in manifest.segments]
        self._selectors: dict[str, LoadedGraph] = {}
        self._opening = threading.Lock()
        self._backend = backend

    @property
    def selectors(self) -> list[LoadedGraph]:
        """Graphs between segments that have been opened."""
        return list(self._selectors.values())

    def prefill(
        self,
        embeds: Tensor | Array,
        input_ids: IntArray,
        attention_mask: IntArray,
        keep_indices: IntArray,
        served: ServedImage,
        padding: Tensor | None = None,
        new_tokens: int = 1,
    ) -> tuple[Logits, Cache]:
        """Run prompts.

        Parameters
        ----------
        embeds : Tensor or array of shape (B, S, E)
            Embeddings with the visual tokens in place.
        input_ids, attention_mask : arrays of shape (B, S)
        keep_indices : array of shape (spans, K)
        served : ServedImage
            What the images are.
        padding : Tensor of shape (spans, K) or None
            1 for visual tokens that are padding, where the vision graph tells.
        new_tokens : int
            Tokens that are expected to follow at most.

        Returns
        -------
        logits : array of shape (B, V), float32
        cache : Cache

        Raises
        ------
        InputError
            If a prompt ends in an image and visual tokens leave the decoder: nothing would be left to go on from.
        """
        rules = [_rule(*segment) for segment in zip(self.plan, served.segment_tokens_per_span, strict=True)]
        prompts = input_ids, attention_mask, served.token_id
        scheduled = schedule(
            *(*prompts, served.keep_per_span, rules, served.spans, self.facts.bidirectional),
            by_modality=any(segment.takes_rows for segment in self.segments),
        )
        places = positions(*prompts, keep_indices, served.positions)
        cache = Cache([], places.following, [])
        hidden: Tensor | Array = embeds
        position_ids: Tensor | IntArray = places.ids
        mask, whole = attention_mask, (hidden, position_ids)
        tapped: Tensor | None = None
        last = len(self.segments) - 1
        for number, (segment, entry) in enumerate(zip(self.segments, scheduled, strict=True)):
            inputs = entry.handoff_inputs
            if entry.enters == "gather":
                whole = hidden, position_ids
                hidden = self._hand_over(number, served, hidden, *inputs)[HANDED_OVER]
                position_ids = _take(_numbers(position_ids), *inputs)
            elif entry.enters == "merge":
                full, position_ids = whole
                hidden = self._hand_over(number, served, full, hidden, *inputs)[HANDED_OVER]
            elif entry.enters == "prune":
                before = [] if tapped is None else [tapped]
                values = hidden, mask, position_ids, *inputs, *before
                named = self._hand_over(number, served, *values, padding=padding)
                hidden, position_ids, kept = (named[name] for name in PRUNED)
                padding = named.get(KEPT_PADDING)
                cache.kept.append(kept)
            mask = entry.attention_mask
            entering = _as(hidden, segment.graph.inputs[segment.hidden])
            shape = len(input_ids), self.facts.kv_heads, self.facts.head_dim
            past = self._backend.past(segment.graph, shape, mask.shape[1] + new_tokens)
            keys = _numbers(position_ids) if segment.takes_key_positions else None
            rows = _named(entry.rows) if segment.takes_rows else {}
            result, present, tapped = segment.run(
                past, entering, mask, position_ids, number == last, entry.block_ids, keys, rows
            )
            hidden = result
            past.begin(present, mask, keys)
            cache.past.append(past)
        return _logits(result), cache

    def _hand_over(
        self, number: int, served: ServedImage, *values: Tensor | Array, padding: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the graph before segment `number` on values in the order of its inputs; its outputs by name.

        Graphs that prune are made for one layout, and opened when it comes. Some take `padding` besides.

        Raises
        ------
        BundleError
            If the graph takes it, and the vision graph does not give it.
        """
        facts = self.plan[number].selector
        if facts is None:
            raise AssertionError("tokens are handed over by a graph")
        name = facts.graph + (served.suffix if facts.kind == "prune" else "")
        with self._opening:
            if name not in self._selectors:
                self._selectors[name] = self._backend.open(name)
        graph = self._selectors[name]
        feeds = dict(zip((tensor for tensor in graph.inputs if tensor != PADDING), values, strict=True))
        if PADDING in graph.inputs:
            if padding is None:
                raise BundleError(
                    f"graph '{name}' takes {PADDING}, and the vision graph does not give it: they are of two exports; "
                    "export the bundle again"
                )
            feeds[PADDING] = padding
        feeds = {tensor: _as(value, graph.inputs[tensor]) for tensor, value in feeds.items()}
        return dict(zip(graph.outputs, graph.run(feeds), strict=True))

    def step(self, tokens: IntArray, cache: Cache) -> Logits:
        """Run one more token of each row; the cache moves on.

        Parameters
        ----------
        tokens : array of shape (B,)

        Returns
        -------
        array of shape (B, V), float32
        """
        here = cache.following[:, None]
        places = np.broadcast_to(here, (self.axes, *here.shape)).copy() if self.axes > 1 else here
        arrays = {"input_ids": tokens[:, None], "position_ids": places}
        text = _named(token_rows(np.zeros((len(tokens), 1), dtype=bool)))
        if any(segment.takes_rows for segment in self.segments):
            arrays |= text
        for number, past in enumerate(cache.past):
            mask, keys = past.mask(), past.positions(here)
            arrays[f"{number}.mask"] = mask
            if self.facts.bidirectional != "none":
                arrays[f"{number}.blocks"] = np.full_like(mask, -1)
            if keys is not None:
                arrays[f"{number}.keys"] = keys
        last = len(self.segments) - 1

        def program(given: Mapping[str, Tensor | Array]) -> tuple[Tensor, list[list[Tensor]]]:
            hidden = self.embedding.run({"input_ids": given["input_ids"]})[0]
            presents = []
            for number, (segment, past) in enumerate(zip(self.segments, cache.past, strict=True)):
                hidden, present, _ = segment.run(
                    *(past, hidden, given[f"{number}.mask"], given["position_ids"], number == last),
                    *(given.get(f"{number}.blocks"), given.get(f"{number}.keys")),
                    {name: given[name] for name in text} if segment.takes_rows else {},
                )
                presents.append(present)
            return hidden, presents

        fixed = [tensor for past in cache.past for tensor in past.tensors]
        with self._backend.lock:
            logits, presents = self._backend.repeat(fixed, arrays, program)
            for past, present in zip(cache.past, presents, strict=True):
                past.append(present, here)
            cache.following = cache.following + 1
            return _logits(logits)


def _rule(segment: SegmentFacts, visual_tokens: int) -> SegmentRule:
    """How tokens come to a segment that has so many visual tokens of a span."""
    selector = segment.selector
    if selector is None:
        return SegmentRule("same")
    return SegmentRule(selector.kind, visual_tokens, selector.queries or "")


def _named(rows: TokenRows | None) -> dict[str, IntArray]:
    if rows is None:
        raise AssertionError("segments that tell tokens apart see visual ones")
    return dict(zip(ROWS, rows, strict=True))


def _take(values: IntArray, indices: IntArray) -> IntArray:
    """Values ([3,] B, S) at indices (B, T)."""
    return np.take_along_axis(values, np.broadcast_to(indices, (*values.shape[:-1], indices.shape[-1])), axis=-1)


def _numbers(value: Tensor | IntArray) -> IntArray:
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy(), dtype=np.int64)


def _as(value: Tensor | Array, dtype: type[np.generic]) -> Tensor | Array:
    # Graphs of other makers may take embeddings in float32 and hidden states in float16; only before
    # the first segment do the two meet.
    if isinstance(value, np.ndarray) or DTYPES.get(value.data_type()) is dtype:
        return value
    return value.numpy().astype(dtype)


def _logits(tensor: Tensor) -> Logits:
    # One copy, as the tensor may be the next step's too; ONNX Runtime's own `numpy` makes another.
    own: Any = tensor
    values = np.from_dlpack(own) if hasattr(own, "__dlpack__") else tensor.numpy()
    return np.array(values[:, -1], dtype=np.float32)
