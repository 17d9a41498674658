"""Sizes of the study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from docs.studies.peers.answers import Task
from vtc.models.random.shapes import SHAPES, Shape

SHAPE = "llava-onevision-0.5b"
TEXT_TOKENS = 71
SHORT, LONG = 110, 800
QWEN_SIDE, QWEN_TOKENS, QWEN_KEPT, QWEN_TEXT = 448, 256, 64, 64
"""The Qwen2-VL shape's image: its side in pixels, its visual tokens, how many stay (a whole percentage), and text."""


@dataclass(frozen=True)
class Settings:
    """What a run is to do.

    Attributes
    ----------
    work : Path
        Where checkpoints, bundles and conversions are kept between runs.
    layers : int
        Layers of tower and decoder at most; 0 leaves the published numbers.
    vocabulary : int
        Entries of the vocabulary at most; 0 leaves the published number.
    rounds, repeats, new_tokens, threads : int
    """

    work: Path
    layers: int = 0
    vocabulary: int = 0
    rounds: int = 5
    repeats: int = 2
    new_tokens: int = 17
    threads: int = 2

    @property
    def reduced(self) -> bool:
        """Whether sizes are not the published ones."""
        return bool(self.layers or self.vocabulary)

    @property
    def shape(self) -> Shape:
        """The vision-language model."""
        shape = SHAPES[SHAPE]
        tower, decoder = shape.tower, shape.decoder
        if self.layers:
            tower = replace(tower, layers=min(self.layers, tower.layers))
            decoder = replace(decoder, layers=min(self.layers, decoder.layers))
        if self.vocabulary:
            decoder = replace(decoder, vocab=min(self.vocabulary, decoder.vocab))
        return replace(shape, tower=tower, decoder=decoder)

    @property
    def visual_tokens(self) -> int:
        """Of one image."""
        return (self.shape.tower.image_size // self.shape.tower.patch_size) ** 2

    @property
    def kept(self) -> int:
        """Visual tokens that are left where they are pruned."""
        return SHORT - TEXT_TOKENS

    def text(self) -> Task:
        """Prompts of token ids."""
        return Task((SHORT, LONG), self.new_tokens, self.repeats, self.threads, self._ids)

    def image(self, kept: int) -> Task:
        """Prompts with an image."""
        side, length = self.shape.tower.image_size, kept + TEXT_TOKENS
        return self._seen(length, side, kept)

    def qwen(self, kept: int) -> Task:
        """Prompts with an image to the Qwen2-VL shape."""
        return self._seen(kept + QWEN_TEXT, QWEN_SIDE, kept)

    def _seen(self, length: int, side: int, kept: int) -> Task:
        # Most of the time goes to the encoder: half the answers that a prompt without an image gets.
        return Task((length,), self.new_tokens, -(-self.repeats // 2), self.threads, self._ids, side, kept)

    @property
    def _ids(self) -> int:
        # The reference tokenizer's words; the placeholder comes after them.
        return 400
