"""What a pruner is trained on: images with their questions, encoded once where memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vtc.compressed.vision_encoder import VisionEncoder
from vtc.data.datasets import REFERENCE, Item, load_dataset, reference_scenes
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.recipe.needs import Needs, Reading
from vtc.training.encoded import joined, rows_of
from vtc.training.forward import answer_states
from vtc.training.packing import Packed, PromptLayout, QuestionTokens, pack, tokenize
from vtc.visual_tokens import VisualTokens

BATCH = 8
"""Images encoded at once: few enough for the largest tensors to stay in reach of the allocator's own reuse."""
GUIDING_LAYERS = 4
"""The last encoder layers, whose CLS attention a pruner may imitate to begin with; VTC-CLS averages as many."""
HELD_OUT_SHARE = 0.1
"""Of a data set's images, those that a pruner is validated on, unless fewer are asked for."""


@dataclass(frozen=True)
class Example:
    """An image, its questions, and their token ids."""

    items: tuple[Item, ...]
    questions: tuple[QuestionTokens, ...]


@dataclass(frozen=True)
class Data:
    """Training and held-out examples; no image is in both.

    Attributes
    ----------
    beginning : list of int
        Token ids before the questions, the same for every prompt, as :func:`vtc.training.packing.tokenize` gives them.
    train, validation : tuples of Example
    """

    beginning: list[int]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]


def load_examples(adapter: VLMAdapter, source: str, images: int, validation: int, seed: int) -> Data:
    """Images with all their questions.

    Parameters
    ----------
    adapter : VLMAdapter
    source : str
        ``reference``: scenes of the training and of the validation writers. A directory with data.jsonl: a part of
        its images is held out, so give a training split.
    images, validation : int
        Images to train on and to hold out, at most.
    seed : int
        Draws them.

    Raises
    ------
    InputError
        If there are not at least two images.
    """
    if source == REFERENCE:
        train = list(itertools.islice(reference_scenes(seed, "train"), images))
        held_out = list(itertools.islice(reference_scenes(seed, "validation"), validation))
    else:
        by_image: dict[str, list[Item]] = {}
        for item in load_dataset(source, None, seed).items:
            by_image.setdefault(item.image_id, []).append(item)
        groups = list(by_image.values())
        if len(groups) < 2:
            raise InputError(f"{source}: a pruner is trained on some images and checked on others; give at least two")
        order = np.random.default_rng(seed).permutation(len(groups))
        count = max(1, min(validation, round(HELD_OUT_SHARE * len(groups))))
        held_out = [groups[index] for index in order[:count]]
        train = [groups[index] for index in order[count : count + images]]
    beginning, questions = tokenize(adapter, [item for group in [*train, *held_out] for item in group])
    following = iter(questions)
    examples = [Example(tuple(g), tuple(itertools.islice(following, len(g)))) for g in [*train, *held_out]]
    return Data(beginning, tuple(examples[: len(train)]), tuple(examples[len(train) :]))


@dataclass(frozen=True)
class Encoded:
    """What the frozen model says about one image.

    Attributes
    ----------
    tokens : VisualTokens
        Visual tokens before the projector, (S, N, D), bfloat16, a row for each run of placeholders.
    states : Tensor of shape (T, E), bfloat16
        Last hidden states of the unpruned model where its answers are predicted; its head turns them into logits.
    attention : Tensor of shape (S, N) or None
        Attention of the encoder's CLS token, mean over the last layers that run; None where it has no such token.
    """

    tokens: VisualTokens
    states: Tensor
    attention: Tensor | None

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        own = [*self.tokens.tensors().values(), self.states, *([] if self.attention is None else [self.attention])]
        return sum(tensor.nbytes for tensor in own)


def visual_tokens(encoded: Sequence[Encoded], device: torch.device) -> VisualTokens:
    """Visual tokens of images, float32, on a device; runs of an image one after the other."""
    return in_type(joined([one.tokens for one in encoded], lambda values: torch.cat(values).to(device)), torch.float32)


def in_type(tokens: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """Visual tokens whose features are of a type."""
    deepstack = None if tokens.deepstack is None else tokens.deepstack.to(dtype)
    return replace(tokens, features=tokens.features.to(dtype), deepstack=deepstack)


class EncodedExamples:
    """Examples with their features, kept as far as memory allows and computed again where it does not.

    Parameters
    ----------
    adapter : VLMAdapter
        On the device to compute on.
    layers : sequence of int
        Encoder layers to run.
    beginning : sequence of int
    examples : sequence of Example
    memory : int
        Bytes that may be kept.
    report : callable
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        layers: Sequence[int],
        beginning: Sequence[int],
        examples: Sequence[Example],
        memory: int,
        report: Report = silent,
    ) -> None:
        self.adapter = adapter
        self.guides = tuple(layers[-GUIDING_LAYERS:]) if adapter.facts.encoder.has_cls else ()
        rows = frozenset(Reading("cls_attention", layer) for layer in self.guides)
        self.encoder = VisionEncoder(adapter, layers, needs=Needs(rows), tells_padding=adapter.pixels.pads)
        self.prompts = PromptLayout.of(adapter, beginning)
        self.examples = examples
        self.kept: list[Encoded] = []
        used = 0
        for first in range(0, len(examples), BATCH):
            report("encoding images", first, len(examples))
            encoded = self._encode(examples[first : first + BATCH])
            used += sum(one.bytes for one in encoded)
            if used > memory:
                break
            self.kept += encoded
        report("encoding images", len(examples), len(examples))

    def __len__(self) -> int:
        return len(self.examples)

    def get(self, numbers: Sequence[int]) -> list[Encoded]:
        """Encoded images by number, on the CPU."""
        missing = [number for number in numbers if number >= len(self.kept)]
        computed = dict(zip(missing, self._encode([self.examples[n] for n in missing]), strict=True)) if missing else {}
        return [computed[number] if number in computed else self.kept[number] for number in numbers]

    def tokens(self, numbers: Sequence[int]) -> VisualTokens:
        """Visual tokens of some images, float32, where the model is; runs of an image one after the other."""
        return visual_tokens(self.get(numbers), self.adapter.model.device)

    def pack(self, numbers: Sequence[int], places: Tensor) -> Packed:
        """The questions of some images after the visual tokens at `places` (B * S, K)."""
        return self._pack([self.examples[number] for number in numbers], places)

    def batches(self) -> Iterator[list[int]]:
        """All numbers, a batch at a time."""
        for first in range(0, len(self), BATCH):
            yield list(range(first, min(first + BATCH, len(self))))

    def _pack(self, examples: Sequence[Example], places: Tensor) -> Packed:
        return pack(self.prompts, [example.questions for example in examples], places)

    @torch.no_grad()
    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        pixels = self.adapter.preprocess([example.items[0].load() for example in examples])
        found = self.encoder.tokens(pixels.to(self.adapter.model.device))
        guides = [found.readings[Reading("cls_attention", layer)] for layer in self.guides]
        tokens = in_type(replace(found, readings={}), torch.bfloat16)
        visual, places, *_ = self.encoder.compress(in_type(tokens, torch.float32))
        packed = self._pack(examples, places)
        states = answer_states(self.adapter, packed, visual).to(torch.bfloat16).cpu()
        images, spans = packed.images[packed.rows].cpu(), self.adapter.facts.layout.spans
        kept = joined([tokens], lambda values: values[0].cpu())
        attention: Sequence[Tensor | None] = [None] * len(examples)
        if guides:
            attention = torch.split(torch.stack(guides).mean(dim=0).cpu(), spans)
        return [
            Encoded(joined([kept], rows_of(number * spans, spans)), states[images == number], guide)
            for number, guide in enumerate(attention)
        ]
