"""What is asked of every contestant, and what it tells."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FIRST = 10
"""Token ids below this are special."""


@dataclass(frozen=True)
class Task:
    """What one visit to a contestant measures.

    Attributes
    ----------
    contexts : sequence of int
        Lengths of prompts in tokens.
    new_tokens : int
        Tokens of each answer: the first, and as many steps as are left.
    repeats : int
        Answers to each prompt that count; one more, before them, does not.
    threads : int
    vocabulary : int
        Token ids from FIRST to this are text.
    image_side : int
        Of the image, in pixels; 0 for text alone.
    kept : int
        Visual tokens of it that enter the decoder.
    """

    contexts: Sequence[int]
    new_tokens: int
    repeats: int
    threads: int
    vocabulary: int
    image_side: int = 0
    kept: int = 0

    def prompt(self, length: int, number: int) -> list[int]:
        """Ids of text of a length, the same for every contestant.

        Prompts of another number begin otherwise: some peers keep the cache of a prefix that they have seen.
        """
        return [FIRST + (7919 * (place + 31 * number)) % (self.vocabulary - FIRST) for place in range(length)]

    def image(self, number: int) -> NDArray[np.uint8]:
        """Levels of an image of noise, (side, side, 3); another for each number."""
        levels = np.random.default_rng(number).integers(0, 256, (self.image_side, self.image_side, 3))
        return levels.astype(np.uint8)


@dataclass(frozen=True)
class Answer:
    """One answer, timed.

    Attributes
    ----------
    first_ms : float
        From pixels or token ids to the first token.
    step_ms : sequence of float
        Each further token.
    vision_ms : float or None
        The vision encoder's share of `first_ms`, where it is told.
    inside_ms : sequence of float
        Each step's share inside the runtime that computes, where it is told.
    sees : int
        Tokens that the decoder saw in prefill.
    preprocess_ms : float or None
        Making pixels and ids of image and text, where `first_ms` does not have it.
    """

    first_ms: float
    step_ms: Sequence[float]
    vision_ms: float | None = None
    inside_ms: Sequence[float] = field(default_factory=tuple)
    sees: int = 0
    preprocess_ms: float | None = None


class Engine(Protocol):
    """A contestant, loaded."""

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        """Answer a prompt of token ids."""

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        """Answer about an image of the task, `length` tokens of prompt, visual ones included."""

    def facts(self) -> Mapping[str, Any]:
        """What the results say of it besides."""


def size_of(path: str) -> dict[str, int]:
    """Bytes of a folder's files, as a fact."""
    return {"bytes": sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())}


def run_tool(command: Sequence[str]) -> None:
    """Run a converter; where it fails, end as it did: it has said why on stderr."""
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)
