"""The vision graphs of a bundle: from pixels to the visual tokens that enter the decoder.

There are two of them where the recipe splits off what reads the question: one is run once an image, and what it makes
may be kept, and one once a question.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple

from vtc.bundle.facts import ServedImage
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError
from vtc.inputs.schedule import query_tokens
from vtc.runtime.decoder import PADDING
from vtc.runtime.generation import Batch
from vtc.runtime.image_cache import ImageCache, content_key
from vtc.runtime.interface import Array, Backend, IntArray, LoadedGraph, Tensor

Outputs = Mapping[str, Tensor]
"""What a graph gives, by name."""


class Seen(NamedTuple):
    """What vision graphs make of a batch's images.

    Attributes
    ----------
    features : Tensor of shape (spans, K, E')
    keep_indices : array of shape (spans, K), int64
        Places of the kept tokens among all of a span, ascending.
    padding : Tensor of shape (spans, K) or None
        1 for tokens that show nothing but a bar; where cuts inside the decoder read it.
    """

    features: Tensor
    keep_indices: IntArray
    padding: Tensor | None


class Vision:
    """The graphs for each layout of images, opened when its first image comes.

    Parameters
    ----------
    manifest : Manifest
    backend : Backend
    cache_bytes : int
        What may be kept of images that were seen; see :class:`~vtc.runtime.image_cache.ImageCache`.
    """

    def __init__(self, manifest: Manifest, backend: Backend, cache_bytes: int = 0) -> None:
        self._width = manifest.generation.width
        self._backend = backend
        self._graphs: dict[str, LoadedGraph] = {}
        self._opening = threading.Lock()
        self._cache: ImageCache[Outputs] = ImageCache(cache_bytes)
        self._last = threading.local()

    def open(self, served: ServedImage) -> LoadedGraph:
        """The graph of a layout that takes pixels; the one that goes on after it, where there is one, is loaded too.

        Raises
        ------
        BundleError
            If one cannot be loaded.
        """
        return self._open(served)[0]

    def _open(self, served: ServedImage) -> list[LoadedGraph]:
        with self._opening:
            for name in served.graphs:
                if name not in self._graphs:
                    self._graphs[name] = self._backend.open(name)
            return [self._graphs[name] for name in served.graphs]

    def close(self) -> None:
        """Let go of the graphs, and of what they have made, until the next image comes."""
        self._graphs.clear()
        self._cache.clear()

    def run_ms(self, served: ServedImage) -> float:
        """Milliseconds of a layout's last run by this thread, without graphs that are closed or whose part was kept."""
        kept = served.graphs[: getattr(self._last, "kept", 0)]
        return sum(self._graphs[name].run_ms for name in served.graphs if name in self._graphs and name not in kept)

    def see(self, batch: Batch, pixels: Array, embeds: Tensor) -> Seen:
        """Encode a batch's images, by the questions where a graph reads them.

        Parameters
        ----------
        batch : Batch
        pixels : array of shape (images, ...)
        embeds : Tensor of shape (B, S, E')
            Embeddings of its token ids.

        Raises
        ------
        BundleError
            If the graphs do not go together, or give other numbers of tokens than the manifest has it.
        """
        served, graphs = batch.served, self._open(batch.served)
        encoder, last = graphs[0], graphs[-1]
        question = self._question(batch, embeds) if "text_embeds" in last.inputs else {}
        if last is encoder:
            made = self._kept(served.graphs[0], encoder, {"pixel_values": pixels, **question})
        else:
            made = _go_on(served, last, self._kept(served.graphs[0], encoder, {"pixel_values": pixels}), question)
        keep_indices = made["keep_indices"].numpy()
        if keep_indices.size != (visual := int((batch.input_ids == served.token_id).sum())):
            raise BundleError(
                f"graph '{served.graphs[-1]}' gives {keep_indices.size} visual tokens where the manifest's "
                f"prompts have {visual}; export the bundle again"
            )
        if self._cache.most:
            keep_indices.setflags(write=False)  # whoever is given it may not change what is kept
        return Seen(made["image_features"], keep_indices, made.get(PADDING))

    def _question(self, batch: Batch, embeds: Tensor) -> dict[str, Array]:
        """What is asked about each span."""
        served = batch.served
        where = query_tokens(
            batch.input_ids, batch.mask, served.token_id, served.keep_per_span, "text_after_image", served.spans
        )
        own = embeds.numpy()[..., : self._width]
        return {
            "text_embeds": own[where.image_rows[:, None], where.query_columns],
            "text_mask": where.query_mask,
        }

    def _kept(self, name: str, graph: LoadedGraph, feeds: Mapping[str, Array]) -> Outputs:
        """What a graph makes, or has made of the same before."""
        key = content_key(name, feeds) if self._cache.most else b""
        made = self._cache.get(key)
        self._last.kept = int(made is not None)
        if made is None:
            made = _run(graph, feeds)
            self._cache.put(key, made, sum(one.tensor_size_in_bytes() for one in made.values()))
        return made


def _run(graph: LoadedGraph, feeds: Mapping[str, Array | Tensor]) -> Outputs:
    return dict(zip(graph.outputs, graph.run(feeds, host=("keep_indices",)), strict=True))


def _go_on(served: ServedImage, reader: LoadedGraph, seen: Outputs, question: Mapping[str, Array]) -> Outputs:
    """Run the graph that reads the question on what the first has made of images."""
    wanted = [name for name in reader.inputs if name not in question]
    if absent := [name for name in wanted if name not in seen]:
        encoder, last = served.graphs
        raise BundleError(
            f"graph '{last}' takes {absent[0]}, which '{encoder}' does not give: they are of two exports; export the "
            "bundle again"
        )
    return _run(reader, {**{name: seen[name] for name in wanted}, **question})
