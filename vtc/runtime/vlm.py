"""A vision-language model from a bundle: three lines from a directory to an answer.

import vtc
model = vtc.load("bundle")
print(model.ask("photo.jpg", "What is in the picture?"))
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.bundle import Manifest, load_manifest
from vtc.errors import BundleError, InputError
from vtc.runtime.decoder import Cache, Decoder, Logits
from vtc.runtime.image import ImageProcessor, open_image
from vtc.runtime.providers import Provider, choose_provider
from vtc.runtime.sampling import Sampler
from vtc.runtime.session import Array, Graph
from vtc.runtime.text import Text

IntArray = NDArray[np.int64]
ImageLike = str | Path | Image.Image


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
        The vision graph's share of `ttft_ms`.
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
    step_ms: tuple[float, ...]
    segment_lengths: tuple[int, ...]
    kv_bytes: int


@dataclass(frozen=True)
class Generation:
    """An answer: token ids without the end token, their text, and what the batch took."""

    token_ids: list[int]
    text: str
    timings: Timings


class VLM:
    """A bundle, loaded. Not for several threads at once.

    Parameters
    ----------
    manifest : Manifest
    provider : str or None
        ``cpu``, ``cuda``, or ONNX Runtime's name of any other provider; None takes CUDA where it works.
    precision : str or None
        One that the bundle holds; None takes float16 on a GPU and float32 on the CPU where there is a choice.
    threads : int or None
        Threads of one operator; None leaves it to ONNX Runtime.

    Raises
    ------
    BundleError
        If a file of the bundle cannot be used.
    InputError
        If the provider or precision is not to be had.
    """

    def __init__(
        self,
        manifest: Manifest,
        provider: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.provider = choose_provider(provider)
        self.precision = precision or _default_precision(manifest, self.provider)
        if self.precision not in manifest.precisions:
            held = ", ".join(manifest.precisions)
            raise InputError(f"{manifest.root}: holds no {self.precision} graphs; precisions: {held}")
        self.text = Text(manifest)
        self.image_processor = ImageProcessor.from_config(_image_config(manifest))
        self.vision = Graph(manifest.graph("vision_encoder", self.precision), self.provider, threads)
        self.embedding = Graph(manifest.graph("embed_tokens", self.precision), self.provider, threads)
        self.decoder = Decoder(manifest, self.precision, self.provider, threads)

    @classmethod
    def load(
        cls,
        path: str | Path,
        provider: str | None = None,
        precision: str | None = None,
        verify: bool = True,
        threads: int | None = None,
    ) -> VLM:
        """Load a bundle.

        Parameters
        ----------
        path : str or Path
        verify : bool
            Compare every file's hash with the manifest; False compares sizes.
        provider, precision, threads
            As for :class:`VLM`.

        Raises
        ------
        BundleError
            If the bundle is incomplete, changed, or made by a newer vtc.
        """
        return cls(load_manifest(path, verify=verify), provider, precision, threads)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one image that enter the decoder."""
        return self.manifest.image.keep

    # One question -------------------------------------------------------------------------------------------

    def chat(self, question: str, images: int = 1) -> str:
        """The prompt for a question about `images` images."""
        return self.text.chat(question, images)

    def ask(
        self,
        image: ImageLike | Sequence[ImageLike] | None,
        question: str,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """Answer a question about an image (or several, or none).

        Parameters
        ----------
        image : path, PIL image, a sequence of those, or None
        question : str
        max_new_tokens : int
        temperature, top_p, seed
            See :class:`~vtc.runtime.sampling.Sampler`.

        Returns
        -------
        str
        """
        images = _open_all(image)
        sampler = Sampler(temperature, top_p, seed)
        return self.generate([images], [self.chat(question, len(images))], max_new_tokens, sampler)[0].text

    def stream(
        self,
        image: ImageLike | Sequence[ImageLike] | None,
        question: str,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Like :meth:`ask`, yielding the answer piece by piece."""
        images = _open_all(image)
        sampler = Sampler(temperature, top_p, seed)
        generation = self.start([images], [self.chat(question, len(images))], max_new_tokens, sampler)
        yield from generation.stream()

    # Batches ------------------------------------------------------------------------------------------------

    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
    ) -> list[Generation]:
        """Answer a batch of prompts.

        Parameters
        ----------
        images : for each prompt, its images
        prompts : sequence of str
            Whole prompts (see :meth:`chat`) with one placeholder an image.
        max_new_tokens : int
        sampler : Sampler or None
            None is greedy.

        Returns
        -------
        list of Generation
        """
        if not prompts:
            return []
        return self.start(images, prompts, max_new_tokens, sampler or Sampler()).finish()

    def start(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
    ) -> RunningGeneration:
        """Run a batch's prefill; the result goes on token by token."""
        if max_new_tokens < 1:
            raise InputError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        return RunningGeneration(self, *self._inputs(images, prompts), max_new_tokens, sampler or Sampler())

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
        if not prompts:
            return []
        _, pixels, input_ids, mask = self._inputs(images, prompts)
        longest = max(map(len, continuations))
        padded = np.full((len(prompts), max(longest, 1)), self.text.facts.pad_token_id, dtype=np.int64)
        for row, ids in zip(padded, continuations, strict=True):
            row[: len(ids)] = ids
        _, logits, cache = self._prefill(pixels, input_ids, mask)
        steps = [logits]
        for column in range(longest - 1):
            steps.append(self._step(padded[:, column], cache))
        self._release()
        stacked = np.stack(steps, axis=1)
        return [row[: len(ids)].copy() for row, ids in zip(stacked, continuations, strict=True)]

    def encode(self, pixels: Array) -> tuple[Array, IntArray]:
        """Run the vision graph.

        Parameters
        ----------
        pixels : array of shape (n, 3, H, W), float32
            From ``image_processor(images)``.

        Returns
        -------
        features : array of shape (n, K, E)
        keep_indices : array of shape (n, K), int64
            Places of the kept tokens on the grid, ascending.
        """
        outputs = self.vision.run({"pixel_values": pixels}, host=self.vision.outputs)
        named = dict(zip(self.vision.outputs, outputs, strict=True))
        return named["image_features"].numpy(), named["keep_indices"].numpy()

    # Steps --------------------------------------------------------------------------------------------------

    def _inputs(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]
    ) -> tuple[float, Array | None, IntArray, IntArray]:
        """Milliseconds, pixels (n, 3, H, W), token ids and attention mask (B, S) of a batch."""
        begin = time.perf_counter()
        counts = [len(group) for group in images]
        rows = self.text.encode(prompts, counts)
        image, facts = self.manifest.image, self.manifest.generation
        pruned = facts.position_span - image.keep if facts.positions == "original" else 0
        for row, count in zip(rows, counts, strict=True):
            # Pruned tokens leave gaps in the positions, and the decoder knows no position beyond its context.
            length = len(row) + pruned * count
            if length > facts.context:
                raise InputError(f"prompt of {length} tokens is longer than the model's context of {facts.context}")
        flat = [picture for group in images for picture in group]
        pixels = self.image_processor(flat) if flat else None
        if pixels is not None and pixels.shape[2:] != image.size:
            raise BundleError(
                f"{self.manifest.root}: its image processor makes {pixels.shape[2:]} pixels, "
                f"its vision graph takes {image.size}; export it again"
            )
        return _since(begin), pixels, *self.text.batch(rows)

    def _prefill(self, pixels: Array | None, input_ids: IntArray, mask: IntArray) -> tuple[float, Logits, Cache]:
        """Milliseconds of the vision graph, logits (B, V), and the cache."""
        if pixels is None:
            embeds = self.embedding.run({"input_ids": input_ids})[0]
            nothing = np.zeros((0, self.visual_tokens), dtype=np.int64)
            return 0.0, *self.decoder.prefill(embeds, input_ids, mask, nothing)
        begin = time.perf_counter()
        features, keep_indices = self.encode(pixels)
        vision_ms = _since(begin)
        embeds = self.embedding.run({"input_ids": input_ids}, host=self.embedding.outputs)[0].numpy()
        embeds[input_ids == self.text.facts.image_token_id] = features.reshape(-1, features.shape[-1])
        return vision_ms, *self.decoder.prefill(embeds, input_ids, mask, keep_indices)

    def _step(self, tokens: IntArray, cache: Cache) -> Logits:
        embeds = self.embedding.run({"input_ids": tokens[:, None]})[0]
        return self.decoder.step(embeds, cache)

    def _release(self) -> None:
        self.embedding.release()
        self.vision.release()
        self.decoder.release()


class RunningGeneration:
    """A batch on its way: prefilled when made, one token a row with each turn of the iteration.

    Parameters
    ----------
    model : VLM
    preprocess_ms : float
    pixels : array of shape (images, 3, H, W), or None
    input_ids, mask : arrays of shape (B, S)
    max_new_tokens : int
    sampler : Sampler

    Attributes
    ----------
    token_ids : list of list of int
        So far, without end tokens.
    """

    def __init__(
        self,
        model: VLM,
        preprocess_ms: float,
        pixels: Array | None,
        input_ids: IntArray,
        mask: IntArray,
        max_new_tokens: int,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._left = max_new_tokens
        self._preprocess_ms = preprocess_ms
        begin = time.perf_counter()
        self._vision_ms, logits, self._cache = model._prefill(pixels, input_ids, mask)
        self._next = sampler(logits)
        self._ttft_ms = _since(begin)
        self._step_ms: list[float] = []
        self._lengths, self._kv_bytes = self._cache.lengths, self._cache.bytes
        self._ends = frozenset(model.text.facts.eos_token_ids)
        self._open = [True] * len(input_ids)
        self.token_ids: list[list[int]] = [[] for _ in input_ids]

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
                self._model._release()
                return
            begin = time.perf_counter()
            self._next = self._sampler(self._model._step(self._next, self._cache))
            self._step_ms.append(_since(begin))

    def finish(self) -> list[Generation]:
        """Run to the end."""
        for _ in self:
            pass
        timings = self.timings
        return [Generation(ids, self._model.text.decode(ids), timings) for ids in self.token_ids]

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
        """What it took so far."""
        return Timings(
            preprocess_ms=self._preprocess_ms,
            ttft_ms=self._ttft_ms,
            vision_ms=self._vision_ms,
            step_ms=tuple(self._step_ms),
            segment_lengths=self._lengths,
            kv_bytes=self._kv_bytes,
        )


def _default_precision(manifest: Manifest, provider: Provider) -> str:
    wish = "fp16" if provider.device == "cuda" else "fp32"
    return wish if wish in manifest.precisions else manifest.precisions[0]


def _since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000


def _open_all(image: ImageLike | Sequence[ImageLike] | None) -> list[Image.Image]:
    if image is None:
        return []
    several = [image] if isinstance(image, str | Path | Image.Image) else image
    return [one if isinstance(one, Image.Image) else open_image(one) for one in several]


def _image_config(manifest: Manifest) -> dict[str, Any]:
    if "preprocessor_config.json" in manifest.files:
        return manifest.json("preprocessor_config.json")
    config = manifest.json("processor_config.json").get("image_processor")
    if not isinstance(config, dict):
        raise BundleError(f"{manifest.root}: holds no image processor settings; export it again")
    return config
