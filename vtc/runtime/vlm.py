"""A vision-language model from a bundle: three lines from a directory to an answer.

import vtc
model = vtc.load("bundle")
print(model.ask("photo.jpg", "What is in the picture?"))
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtc.bundle.engines import Limits
from vtc.bundle.facts import ServedImage
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import InputError
from vtc.inputs.batches import in_parts
from vtc.inputs.generation import GenerationRules
from vtc.inputs.layouts import layouts_of
from vtc.inputs.pixels import to_pixels
from vtc.inputs.prompts import clips
from vtc.runtime.answering import Answering
from vtc.runtime.backends import open_backend
from vtc.runtime.decoder import Cache, Decoder, Logits
from vtc.runtime.generation import Batch, Prefilled, milliseconds_since
from vtc.runtime.image import open_batch
from vtc.runtime.interface import Array, Backend, IntArray, LoadedGraph, Tensor
from vtc.runtime.needs import check_room
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.text import Text
from vtc.runtime.vision import Vision


class _Language:
    """The graphs that are the same for every budget, loaded when they are first wanted."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self._manifest, self._backend = manifest, backend

    @cached_property
    def embedding(self) -> LoadedGraph:
        return self._backend.open("embed_tokens")

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self._manifest, self._backend, self.embedding)


class VLM(Answering):
    """A bundle that answers.

    Any number of threads may ask it at once; each gets the answer that it would get alone. ONNX Runtime runs them side
    by side; OpenVINO's requests and TensorRT's engines take turns. One
    :class:`~vtc.runtime.generation.RunningGeneration` or stream belongs to one thread.

    Graphs are loaded when they are first wanted, those that every answer needs at the latest by :meth:`open`.

    Parameters
    ----------
    manifest : Manifest
    backend : Backend
        What runs the graphs; :func:`vtc.runtime.backends.open_backend` makes one.
    image_cache : int
        Bytes; see :class:`~vtc.runtime.options.RuntimeOptions`.

    Raises
    ------
    BundleError
        If a file of the bundle cannot be used.
    """

    def __init__(self, manifest: Manifest, backend: Backend, image_cache: int = 0) -> None:
        self.manifest, self.backend = manifest.at_budget(), backend
        self.budgets, self.every_image = manifest.budgets, manifest.images
        self._whole = manifest
        self._language = _Language(manifest, backend)
        self.precision, self.variant, self.provider = backend.precision, backend.variant, backend.provider
        self.text = Text(manifest)
        self.vision = Vision(manifest, backend, image_cache)

    def at_budget(self, keep: int) -> VLM:
        """The same bundle at one of its `budgets` of visual tokens, sharing all that is loaded.

        Raises
        ------
        InputError
            If it has no such budget.
        """
        other = copy(self)
        other.manifest = self._whole.at_budget(keep)
        return other

    @classmethod
    def load(cls, path: str | Path, options: RuntimeOptions = RuntimeOptions(), **changes: Any) -> VLM:
        """Load a bundle and the graphs that every answer needs.

        Parameters
        ----------
        path : str or Path
        options : RuntimeOptions
        changes
            Fields of `options` by name, such as ``provider="cuda"``.

        Returns
        -------
        VLM

        Raises
        ------
        BundleError
            If the bundle or its engines are incomplete, changed, or made by a newer vtc.
        InputError
            If what is to run it is not to be had here.
        OutOfResources
            If there is not memory for it.
        """
        options = replace(options, **changes)
        manifest = load_manifest(path, verify=options.verify)
        backend = open_backend(manifest, options)
        check_room(manifest, options, backend)
        vlm = cls(manifest, backend, options.image_cache)
        vlm.open()
        return vlm

    def open(self) -> None:
        """Load the graphs that every answer needs.

        Raises
        ------
        BundleError
            If one cannot be loaded.
        """
        self.vision.open(self.manifest.images[0])
        _ = self.embedding, self.decoder

    @property
    def embedding(self) -> LoadedGraph:
        """The graph that embeds token ids."""
        return self._language.embedding

    @property
    def decoder(self) -> Decoder:
        """The decoder's graphs."""
        return self._language.decoder

    @property
    def run_as(self) -> str:
        """Which variant is run, or the precision that it is computed in where that is another, and on what."""
        exported = self.precision == self.backend.exported
        return f"{self.variant if exported else self.precision}, {self.provider}"

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image, of the layout that is served by default, that enter the decoder."""
        served = self.manifest.images[0]
        return served.spans * served.keep_per_span

    @property
    def generation_rules(self) -> GenerationRules:
        """What the checkpoint's settings ask of answers, which this model follows."""
        return self.manifest.generation.rules

    def layouts(self, images: Sequence[Sequence[Image.Image]]) -> list[int]:
        """Number of each prompt's layout; see :func:`vtc.inputs.layouts.layouts_of`."""
        return layouts_of(images, [served.offer for served in self.manifest.images])

    def serve(self, images: Sequence[Sequence[Image.Image]]) -> ServedImage:
        """The layout of a batch.

        Raises
        ------
        InputError
            If its prompts take different ones.
        """
        numbers = set(self.layouts([group for group in images if group])) or {0}
        if len(numbers) > 1:
            raise InputError(
                "prompts of a batch take different layouts of the bundle, by the shape or number of their images; ask "
                "about each by itself"
            )
        return self.manifest.images[numbers.pop()]

    # Prompts ------------------------------------------------------------------------------------------------

    def chat(self, question: str, images: int = 1) -> str:
        """The prompt for a question about `images` images, of the layout that is served by default."""
        served = self.manifest.images[0]
        return self.text.chat(question, clips([images], served.frames)[0], served)

    # Batches ------------------------------------------------------------------------------------------------

    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[int]],
    ) -> list[Logits]:
        """Next-token logits along given continuations (teacher forcing).

        Parameters
        ----------
        images, prompts : as in :meth:`generate`
        continuations : for each prompt, its token ids

        Returns
        -------
        list of arrays of shape (T, V), float32
            Row t holds the logits from which token t of the continuation would be drawn.
        """
        opened = open_batch(images)

        def part(rows: list[int]) -> list[Logits]:
            asked = [opened[row] for row in rows], [prompts[row] for row in rows]
            return self._score(*asked, [continuations[row] for row in rows])

        return in_parts(self.layouts(opened), part)

    def _score(self, images: Any, prompts: Any, continuations: Sequence[Sequence[int]]) -> list[Logits]:
        """Logits of prompts that share a layout."""
        longest = max(map(len, continuations))
        _, batch = self.inputs(images, prompts, longest)
        padded = np.full((len(prompts), max(longest, 1)), self.text.facts.pad_token_id, dtype=np.int64)
        for row, ids in zip(padded, continuations, strict=True):
            row[: len(ids)] = ids
        prefilled = self.prefill(batch)
        steps, cache = [prefilled.logits], prefilled.cache
        for column in range(longest - 1):
            steps.append(self.step(padded[:, column], cache))
        stacked = np.stack(steps, axis=1)
        return [row[: len(ids)].copy() for row, ids in zip(stacked, continuations, strict=True)]

    def kept(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> list[IntArray]:
        """Tell which visual tokens a batch of prompts keeps: entering the decoder, and after each cut inside it.

        Parameters
        ----------
        images, prompts : as in :meth:`generate`

        Returns
        -------
        list of arrays of shape (spans, K)
            Places among all visual tokens of a span, ascending.
        """
        _, batch = self.inputs(images, prompts)
        if batch.pixels is None:
            return []
        if not any(segment.selector and segment.selector.kind == "prune" for segment in self.manifest.segments):
            with self.backend.lock:
                return [self.vision.see(batch, batch.pixels, self._embed(batch)).keep_indices]
        with self.backend.lock:
            prefilled = self.prefill(batch)
            kept = [prefilled.keep_indices]
            for chosen in prefilled.cache.kept:
                kept.append(np.take_along_axis(kept[-1], chosen.numpy(), axis=1))
        return kept

    def encode(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> tuple[Array, IntArray]:
        """Run the vision graph on a batch of prompts' images.

        Parameters
        ----------
        images, prompts : as in :meth:`generate`

        Returns
        -------
        features : array of shape (spans, K, E')
        keep_indices : array of shape (spans, K), int64
            Places of the kept tokens among all of a span, ascending.
        """
        _, batch = self.inputs(images, prompts)
        if batch.pixels is None:
            raise InputError("there is no image to encode")
        with self.backend.lock:
            seen = self.vision.see(batch, batch.pixels, self._embed(batch))
            return seen.features.numpy(), seen.keep_indices

    def preprocess(self, images: Sequence[Image.Image]) -> Array:
        """Pixels of images, or of clips one frame after the other, as the vision graph takes them."""
        (opened,) = open_batch([images])
        return to_pixels(self.serve([opened]).pixels, opened)

    # Steps, as vtc.runtime.generation describes them ------------------------------------------------------------

    def inputs(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], new_tokens: int = 1
    ) -> tuple[float, Batch]:
        """Milliseconds that making it took, and a batch that is ready to run and to be answered at such length."""
        begin = time.perf_counter()
        images = open_batch(images)
        served = self.serve(images)
        counts = clips([len(group) for group in images], served.frames)
        rows = self.text.encode(prompts, counts, served)
        facts, rule = self.manifest.generation, served.positions
        pruned = rule.span - served.keep_per_span if rule.kind == "original" else 0
        for row, count in zip(rows, counts, strict=True):
            # Pruned tokens leave gaps in the positions, and the decoder knows no position beyond its context.
            length = len(row) + max(pruned, 0) * served.spans * count
            if length > facts.context:
                raise InputError(f"prompt of {length} tokens is longer than the model's context of {facts.context}")
        text = max(len(row) - row.count(served.token_id) for row in rows)
        self.backend.admit(Limits(len(rows), max(counts), text, new_tokens))
        flat = [picture for group in images for picture in group]
        pixels = to_pixels(served.pixels, flat) if flat else None
        return milliseconds_since(begin), Batch(served, pixels, *self.text.batch(rows), new_tokens)

    def prefill(self, batch: Batch) -> Prefilled:
        with self.backend.lock:
            return self._prefill(batch)

    def _prefill(self, batch: Batch) -> Prefilled:
        vision_ms, padding = 0.0, None
        keep_indices = np.zeros((0, batch.served.keep_per_span), dtype=np.int64)
        embeds: Tensor | Array = (tokens := self._embed(batch))
        if batch.pixels is not None:
            features, keep_indices, padding = self.vision.see(batch, batch.pixels, tokens)
            vision_ms = self.vision.run_ms(batch.served)
            embeds = self.backend.place(tokens, features, batch.input_ids == batch.served.token_id)
        begin = time.perf_counter()
        logits, cache = self.decoder.prefill(
            embeds, batch.input_ids, batch.mask, keep_indices, batch.served, padding, batch.new_tokens
        )
        return Prefilled(logits, cache, keep_indices, vision_ms, milliseconds_since(begin))

    def _embed(self, batch: Batch) -> Tensor:
        """Embeddings (B, S, E') of the token ids, placeholders included."""
        return self.embedding.run({"input_ids": batch.input_ids})[0]

    def step(self, tokens: IntArray, cache: Cache) -> Logits:
        return self.decoder.step(tokens, cache)
