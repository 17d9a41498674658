"""The decoder of a bundle: its segments in turn, each with a KV cache of its own length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtc.bundle import Manifest, SelectorFacts, ServedImage
from vtc.errors import InputError
from vtc.runtime.session import DTYPES, Array, Graph, Tensor
from vtc.sequence import attention_blocks, cut, positions, text_tokens

BEFORE = "before_hidden_states"
"""Output of a segment whose last layer a selector looks at: what enters that layer."""
IntArray = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass
class Cache:
    """A running generation.

    Attributes
    ----------
    past : list over segments of list of Tensor
        Keys and values of each layer, (B, Hkv, P, Dh), on the device, in the order of the graph's inputs.
    masks : list over segments of array of shape (B, P)
        1 for a token of that segment's cache, 0 for padding.
    following : array of shape (B,)
        Position of the next token.
    positions : list over segments of array of shape (B, P), or None
        Positions of the tokens of that segment's cache, where it asks for them.
    kept : list of Tensor of shape (spans, K)
        For each cut inside the decoder, which of the tokens that came to it stayed; on the device.
    """

    past: list[list[Tensor]]
    masks: list[IntArray]
    following: IntArray
    positions: list[IntArray | None]
    kept: list[Tensor]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Length of each segment's cache, from its tensors."""
        return tuple(int(tensors[0].shape()[2]) for tensors in self.past)

    @property
    def bytes(self) -> int:
        """Size of all keys and values of the batch, from their tensors."""
        return sum(int(tensor.tensor_size_in_bytes()) for tensors in self.past for tensor in tensors)


class Segment:
    """One segment's graph, and what to call its tensors.

    Parameters
    ----------
    graph : Graph
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.past = [name for name in self.graph.inputs if name.startswith("past_key_values.")]
        present = [name.replace("past_key_values", "present", 1) for name in self.past]
        self.hidden = next(iter(self.graph.inputs))
        self.result = next(name for name in self.graph.outputs if not name.startswith("present.") and name != BEFORE)
        self._result = self.graph.outputs.index(self.result)
        self._present = [self.graph.outputs.index(name) for name in present]
        self._before = self.graph.outputs.index(BEFORE) if BEFORE in self.graph.outputs else None
        self.takes_blocks = "block_ids" in self.graph.inputs
        self.takes_key_positions = "key_position_ids" in self.graph.inputs

    def run(
        self,
        hidden: Tensor | Array,
        mask: IntArray,
        position_ids: Tensor | IntArray,
        past: list[Tensor],
        host: bool,
        blocks: IntArray | None = None,
        key_positions: IntArray | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Run S new tokens behind P cached ones.

        Parameters
        ----------
        hidden : Tensor or array of shape (B, S, E)
        mask : array of shape (B, P + S)
        position_ids : Tensor or array of shape (B, S) or (3, B, S)
        past : list of Tensor
        host : bool
            Whether the result is wanted on the host.
        blocks, key_positions : arrays of shape (B, P + S) or None
            Where the graph takes them.

        Returns
        -------
        result : Tensor
            Hidden states (B, S, E), or in the last segment logits (B, 1, V).
        present : list of Tensor
        before : Tensor or None
            Hidden states (B, S, E) entering the last layer, for a selector behind this segment.
        """
        feeds = {self.hidden: hidden, "attention_mask": mask, "position_ids": position_ids}
        feeds |= {} if blocks is None else {"block_ids": blocks}
        feeds |= {} if key_positions is None else {"key_position_ids": key_positions}
        feeds.update(zip(self.past, past, strict=True))
        outputs = self.graph.run(feeds, host=(self.result,) if host else ())
        before = None if self._before is None else outputs[self._before]
        return outputs[self._result], [outputs[index] for index in self._present], before


class Decoder:
    """The segments and the graphs between them.

    Parameters
    ----------
    manifest : Manifest
    open_graph : callable
        Loads a graph of a name.
    """

    def __init__(self, manifest: Manifest, open_graph: Callable[[str], Graph]) -> None:
        self.facts = manifest.generation
        self.plan = manifest.segments
        self.axes = manifest.images[0].positions.axes
        self.segments = [Segment(open_graph(segment.graph)) for segment in manifest.segments]
        self._selectors: dict[str, Graph] = {}
        self._open = open_graph

    @property
    def selectors(self) -> list[Graph]:
        """Graphs between segments that have been opened."""
        return list(self._selectors.values())

    def _selector(self, facts: SelectorFacts, served: ServedImage) -> Graph:
        """The graph between two segments; those that prune are made for one layout, and opened when it comes."""
        name = facts.graph + (served.suffix if facts.kind == "prune" else "")
        if name not in self._selectors:
            self._selectors[name] = self._open(name)
        return self._selectors[name]

    def prefill(
        self,
        embeds: Tensor | Array,
        input_ids: IntArray,
        attention_mask: IntArray,
        keep_indices: IntArray,
        served: ServedImage,
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

        Returns
        -------
        logits : array of shape (B, V), float32
        cache : Cache

        Raises
        ------
        InputError
            If a prompt ends in an image and the visual tokens leave the decoder: nothing would be left to go
            on from.
        """
        image = served.token_id
        places = positions(input_ids, attention_mask, image, keep_indices, served.positions)
        if len(self.segments) > 1 and bool((input_ids[:, -1] == image).any()):
            raise InputError("a prompt must end in text for this bundle; put the image before the question")
        ids, text = input_ids, text_tokens(input_ids, attention_mask, image)
        text_positions = _take(places.ids, text.indices)
        cache = Cache([], [], places.following, [], [])
        everything = tokens = _Tokens(embeds, attention_mask, places.ids)
        last = len(self.segments) - 1
        before: list[Tensor] = []
        for number, segment in enumerate(self.segments):
            facts = self.plan[number].selector
            if facts is None:
                pass
            elif facts.kind == "gather":
                everything = tokens
                hidden = _select(self._selector(facts, served), tokens.hidden, text.indices)[0]
                tokens = _Tokens(hidden, text.mask, text_positions)
            elif facts.kind == "merge":
                hidden = _select(self._selector(facts, served), everything.hidden, tokens.hidden, text.back)[0]
                tokens = _Tokens(hidden, everything.mask, everything.positions)
            elif len(keep_indices):
                tokens_in, keep = served.segment_tokens[number - 1], served.segment_tokens[number]
                batch = cut(ids, tokens.mask, image, tokens_in, keep, str(facts.queries), served.spans)
                hidden, kept_positions, kept = _select(
                    self._selector(facts, served),
                    *(tokens.hidden, tokens.mask, tokens.positions),
                    *(*batch.graph_inputs, *before),
                )
                ids, text = batch.input_ids, text_tokens(batch.input_ids, batch.attention_mask, image)
                tokens = _Tokens(hidden, batch.attention_mask, kept_positions)
                cache.kept.append(kept)
            hidden = _as(tokens.hidden, segment.graph.inputs[segment.hidden])
            past = self._no_past(segment, len(input_ids))
            blocks = None
            if segment.takes_blocks:
                seen = ids if self.plan[number].sees == "all" else _take(ids, text.indices)
                visual = served.segment_tokens[number]
                blocks = attention_blocks(seen, tokens.mask, image, visual, self.facts.bidirectional)
            keys = _numbers(tokens.positions) if segment.takes_key_positions else None
            hidden, present, entering = segment.run(
                hidden, tokens.mask, tokens.positions, past, number == last, blocks, keys
            )
            before = [] if entering is None else [entering]
            tokens = _Tokens(hidden, tokens.mask, tokens.positions)
            cache.past.append(present)
            cache.masks.append(tokens.mask)
            cache.positions.append(keys)
        return _logits(tokens.hidden), cache

    def step(self, embeds: Tensor, cache: Cache) -> Logits:
        """Run one more token of each row; the cache moves on.

        Parameters
        ----------
        embeds : Tensor of shape (B, 1, E)

        Returns
        -------
        array of shape (B, V), float32
        """
        hidden, here = embeds, cache.following[:, None]
        places = np.broadcast_to(here, (self.axes, *here.shape)).copy() if self.axes > 1 else here
        last = len(self.segments) - 1
        for number, segment in enumerate(self.segments):
            mask = np.concatenate([cache.masks[number], np.ones_like(here)], axis=1)
            blocks = np.full_like(mask, -1) if segment.takes_blocks else None
            before = cache.positions[number]
            keys = None if before is None else np.concatenate([before, here], axis=1)
            hidden, cache.past[number], _ = segment.run(
                hidden, mask, places, cache.past[number], number == last, blocks, keys
            )
            cache.masks[number], cache.positions[number] = mask, keys
        cache.following = cache.following + 1
        return _logits(hidden)

    def release(self) -> None:
        """Let go of the last generation's tensors."""
        for graph in (*(segment.graph for segment in self.segments), *self._selectors.values()):
            graph.release()

    def _no_past(self, segment: Segment, rows: int) -> list[Tensor]:
        return [
            segment.graph.empty(rows, self.facts.kv_heads, 0, self.facts.head_dim, dtype=segment.graph.inputs[name])
            for name in segment.past
        ]


@dataclass(frozen=True)
class _Tokens:
    """Hidden states (B, S, E'), attention mask (B, S) and positions ([3,] B, S) of the tokens that a segment gets."""

    hidden: Tensor | Array
    mask: IntArray
    positions: Tensor | IntArray


def _select(selector: Graph, *values: Tensor | Array) -> list[Tensor]:
    """Run a graph between segments on values in the order of its inputs."""
    inputs = selector.inputs.items()
    return selector.run({name: _as(value, dtype) for value, (name, dtype) in zip(values, inputs, strict=True)})


def _take(values: IntArray, indices: IntArray) -> IntArray:
    """Values ([3,] B, S) at indices (B, T)."""
    return np.take_along_axis(values, np.broadcast_to(indices, (*values.shape[:-1], indices.shape[-1])), axis=-1)


def _numbers(value: Tensor | IntArray) -> IntArray:
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy(), dtype=np.int64)


def _as(value: Tensor | Array, dtype: type[np.generic]) -> Tensor | Array:
    # Graphs of a reduced precision may take embeddings in float32 and hidden states in float16; only in front
    # of the first segment do the two meet.
    if isinstance(value, np.ndarray) or DTYPES.get(value.data_type()) is dtype:
        return value
    return value.numpy().astype(dtype)


def _logits(tensor: Tensor) -> Logits:
    return np.asarray(tensor.numpy()[:, -1], dtype=np.float32)
