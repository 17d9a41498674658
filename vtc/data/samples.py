"""Prompts with their images, to calibrate on, to compare on, to time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtc.data.datasets import load_dataset
from vtc.errors import InputError
from vtc.models.base import VLMAdapter

ANSWER_TOKENS = 16
"""Tokens of an answer that are measured, at most."""

CALIBRATION = 32
"""Prompts that weights in few bits are rounded by, at least."""


@dataclass(frozen=True)
class Sample:
    """A prompt with its images, to calibrate on."""

    images: list[Image.Image]
    prompt: str


def samples_from(adapter: VLMAdapter, source: str | None, count: int, seed: int) -> list[Sample]:
    """Samples from a data set, or made up where there is none; of two images each for layouts of several images.

    Parameters
    ----------
    source : str or None
        ``reference`` (scenes of the training writers), a directory with data.jsonl, or None: noise and a general
        question, enough to compare two runtimes on and not to calibrate on.
    count, seed : int
    """
    layout = adapter.facts.layout
    images = 1 if layout.alone else 2
    if source is None:
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 256, (count, images * layout.frames, *layout.image_size, 3), dtype=np.uint8)
        prompt = adapter.chat("What is in the image?", images)
        return [Sample([Image.fromarray(one) for one in several], prompt) for several in noise]
    if layout.frames > 1:
        raise InputError(f"{source} holds single images, and clips of {layout.frames} frames are served; leave it out")
    items = load_dataset(source, count, seed, split="train").items
    return [Sample([item.load()] * images, adapter.chat(item.question, images)) for item in items]
