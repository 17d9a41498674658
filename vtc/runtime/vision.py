"""The vision graphs of a bundle: from pixels to the visual tokens that enter the decoder."""

from __future__ import annotations

import threading
from typing import NamedTuple

from vtc.bundle.facts import ServedImage
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError
from vtc.inputs.schedule import query_tokens
from vtc.runtime.decoder import PADDING
from vtc.runtime.generation import Batch
from vtc.runtime.image_cache import ImageCache, content_key
from vtc.runtime.interface import Array, Backend, IntArray, LoadedGraph, Tensor


class Seen(NamedTuple):
    """What a vision graph makes of a batch's images.

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
    """A graph for each layout of images, opened when its first image comes.

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
        self._cache: ImageCache[Seen] = ImageCache(cache_bytes)
        self._last = threading.local()

    def open(self, served: ServedImage) -> LoadedGraph:
        """The graph of a layout.

        Raises
        ------
        BundleError
            If it cannot be loaded.
        """
        with self._opening:
            if served.suffix not in self._graphs:
                self._graphs[served.suffix] = self._backend.open(f"vision_encoder{served.suffix}")
            return self._graphs[served.suffix]

    def close(self) -> None:
        """Let go of the graphs, and of what they have made, until the next image comes."""
        self._graphs.clear()
        self._cache.clear()

    def run_ms(self, served: ServedImage) -> float:
        """Milliseconds of a layout's last run by this thread; 0 where its graph is closed or what it gives was kept."""
        graph = self._graphs.get(served.suffix)
        return graph.run_ms if graph and not getattr(self._last, "kept", False) else 0.0

    def see(self, batch: Batch, pixels: Array, embeds: Tensor) -> Seen:
        """Encode a batch's images, by the questions where the graph reads them.

        Parameters
        ----------
        batch : Batch
        pixels : array of shape (images, ...)
        embeds : Tensor of shape (B, S, E')
            Embeddings of its token ids.

        Raises
        ------
        BundleError
            If the graph gives other numbers of tokens than the manifest has it.
        """
        served, graph = batch.served, self.open(batch.served)
        feeds: dict[str, Array] = {"pixel_values": pixels}
        if "text_embeds" in graph.inputs:
            where = query_tokens(
                batch.input_ids, batch.mask, served.token_id, served.keep_per_span, "text_after_image", served.spans
            )
            own = embeds.numpy()[..., : self._width]
            feeds["text_embeds"] = own[where.image_rows[:, None], where.query_columns]
            feeds["text_mask"] = where.query_mask
        key = content_key(served.suffix, feeds) if self._cache.most else b""
        seen = self._cache.get(key)
        self._last.kept = seen is not None
        if seen is None:
            seen = self._run(graph, feeds, batch)
            if self._cache.most:
                seen.keep_indices.setflags(write=False)  # whoever is given it may not change what is kept
            tensors = [seen.features, *([] if seen.padding is None else [seen.padding])]
            self._cache.put(key, seen, seen.keep_indices.nbytes + sum(one.tensor_size_in_bytes() for one in tensors))
        return seen

    def _run(self, graph: LoadedGraph, feeds: dict[str, Array], batch: Batch) -> Seen:
        served = batch.served
        outputs = graph.run(feeds, host=("keep_indices",))
        named = dict(zip(graph.outputs, outputs, strict=True))
        keep_indices = named["keep_indices"].numpy()
        if keep_indices.size != (visual := int((batch.input_ids == served.token_id).sum())):
            raise BundleError(
                f"graph 'vision_encoder{served.suffix}' gives {keep_indices.size} visual tokens where the manifest's "
                f"prompts have {visual}; export the bundle again"
            )
        return Seen(named["image_features"], keep_indices, named.get(PADDING))
