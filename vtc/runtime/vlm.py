"""A vision-language model from a bundle: three lines from a directory to an answer.

import vtc
model = vtc.load("bundle")
print(model.ask("photo.jpg", "What is in the picture?"))
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.bundle import Manifest, load_manifest
from vtc.errors import BundleError, InputError
from vtc.runtime.decoder import Cache, Decoder, Logits
from vtc.runtime.generation import Generation, Prefilled, RunningGeneration, milliseconds_since
from vtc.runtime.image import ImageProcessor, open_image
from vtc.runtime.providers import Provider, choose_provider
from vtc.runtime.sampling import Sampler
from vtc.runtime.session import Array, Graph
from vtc.runtime.text import Text
from vtc.sequence import asked

IntArray = NDArray[np.int64]
ImageLike = str | Path | Image.Image


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
        prefilled = self.prefill(pixels, input_ids, mask)
        steps, cache = [prefilled.logits], prefilled.cache
        for column in range(longest - 1):
            steps.append(self.step(padded[:, column], cache))
        self.release()
        stacked = np.stack(steps, axis=1)
        return [row[: len(ids)].copy() for row, ids in zip(stacked, continuations, strict=True)]

    def kept(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> list[IntArray]:
        """Which visual tokens a batch of prompts keeps: entering the decoder, and behind each cut inside it.

        Parameters
        ----------
        images, prompts : as in :meth:`generate`

        Returns
        -------
        list of arrays of shape (images, K)
            Places on the encoder's grid, ascending.
        """
        _, pixels, input_ids, mask = self._inputs(images, prompts)
        if pixels is None:
            return []
        if not any(segment.selector and segment.selector.kind == "prune" for segment in self.manifest.segments):
            return [self.features(pixels, input_ids, mask)[2]]
        prefilled = self.prefill(pixels, input_ids, mask)
        kept = [prefilled.keep_indices]
        for chosen in prefilled.cache.kept:
            kept.append(np.take_along_axis(kept[-1], chosen.numpy(), axis=1))
        self.release()
        return kept

    def encode(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> tuple[Array, IntArray]:
        """Run the vision graph on a batch of prompts' images.

        Parameters
        ----------
        images, prompts : as in :meth:`generate`

        Returns
        -------
        features : array of shape (n, K, E)
        keep_indices : array of shape (n, K), int64
            Places of the kept tokens on the grid, ascending.
        """
        _, pixels, input_ids, mask = self._inputs(images, prompts)
        if pixels is None:
            raise InputError("there is no image to encode")
        _, features, keep_indices = self.features(pixels, input_ids, mask)
        return features, keep_indices

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
        return milliseconds_since(begin), pixels, *self.text.batch(rows)

    def prefill(self, pixels: Array | None, input_ids: IntArray, mask: IntArray) -> Prefilled:
        """Run prompts, (B, S), with the images' pixels (n, 3, H, W) where there are any."""
        vision_ms = 0.0
        embeds: Any
        if pixels is None:
            embeds = self.embedding.run({"input_ids": input_ids})[0]
            keep_indices = np.zeros((0, self.visual_tokens), dtype=np.int64)
        else:
            embeds, features, keep_indices = self.features(pixels, input_ids, mask)
            vision_ms = self.vision.run_ms
            embeds[input_ids == self.text.facts.image_token_id] = features.reshape(-1, features.shape[-1])
        begin = time.perf_counter()
        logits, cache = self.decoder.prefill(embeds, input_ids, mask, keep_indices)
        return Prefilled(logits, cache, keep_indices, vision_ms, milliseconds_since(begin))

    def features(self, pixels: Array, input_ids: IntArray, mask: IntArray) -> tuple[Array, Array, IntArray]:
        """Embed prompts (B, S) and encode their images (n, 3, H, W), by the questions where the bundle asks for them.

        Returns
        -------
        embeds : array of shape (B, S, E)
            Of the token ids, placeholders included.
        features : array of shape (n, K, E)
        keep_indices : array of shape (n, K), int64
        """
        embeds = self.embedding.run({"input_ids": input_ids}, host=self.embedding.outputs)[0].numpy()
        feeds: dict[str, Array] = {"pixel_values": pixels}
        if "text_embeds" in self.vision.inputs:
            where = asked(input_ids, mask, self.text.facts.image_token_id, self.visual_tokens, "text_after_image")
            feeds["text_embeds"] = embeds[where.image_rows[:, None], where.query_columns]
            feeds["text_mask"] = where.query_mask
        outputs = self.vision.run(feeds, host=self.vision.outputs)
        named = dict(zip(self.vision.outputs, outputs, strict=True))
        return embeds, named["image_features"].numpy(), named["keep_indices"].numpy()

    def step(self, tokens: IntArray, cache: Cache) -> Logits:
        """Run one more token of each row, (B,); the cache moves on. Returns logits (B, V)."""
        embeds = self.embedding.run({"input_ids": tokens[:, None]})[0]
        return self.decoder.step(embeds, cache)

    def release(self) -> None:
        """Let go of the last generation's tensors."""
        self.embedding.release()
        self.vision.release()
        self.decoder.release()


def _default_precision(manifest: Manifest, provider: Provider) -> str:
    wish = "fp16" if provider.device == "cuda" else "fp32"
    return wish if wish in manifest.precisions else manifest.precisions[0]


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
