"""The toy model: its sizes and its weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
WORDS = [
    "what",
    "is",
    "the",
    "colour",
    "of",
    "shape",
    "where",
    "how",
    "many",
    "left",
    "right",
    "red",
    "green",
    "blue",
    "one",
    "two",
    "three",
    "?",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} what{% endif %}"
)


@dataclass(frozen=True)
class Segment:
    """Layers of the toy decoder that see the same tokens."""

    layers: tuple[int, ...]
    sees: str = "all"


@dataclass(frozen=True)
class Toy:
    """Sizes of the toy model."""

    segments: tuple[Segment, ...] = (Segment((0, 1, 2)),)
    keep: int = 3
    positions: str = "renumber"
    half: bool = False
    image_size: int = 16
    patch: int = 4
    width: int = 8
    heads: int = 2
    head_dim: int = 4
    context: int = 200
    weights: dict[str, Array] = field(default_factory=dict, compare=False)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        return self.grid * self.grid

    @property
    def vocabulary(self) -> int:
        return 4 + len(WORDS)


def make_toy(seed: int = 0, **sizes: Any) -> Toy:
    """A toy with random weights, lively enough that every token's logits depend on all that came before."""
    toy = Toy(**sizes)
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> Array:
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    inner = toy.heads * toy.head_dim
    weights = {
        "embedding": weight(toy.vocabulary, toy.width) * 4,
        "patches": weight(3 * toy.patch * toy.patch, toy.width) * 2,
        "score": weight(toy.width, 1),
        "head": weight(toy.width, toy.vocabulary) * 4,
    }
    for layer in (layer for segment in toy.segments for layer in segment.layers):
        weights |= {
            f"q{layer}": weight(toy.width, inner) * 2,
            f"k{layer}": weight(toy.width, toy.head_dim) * 2,
            f"v{layer}": weight(toy.width, toy.head_dim) * 2,
            f"o{layer}": weight(inner, toy.width),
            f"up{layer}": weight(toy.width, 2 * toy.width),
            f"down{layer}": weight(2 * toy.width, toy.width),
        }
    if toy.half:
        weights = {name: value.astype(np.float16) for name, value in weights.items()}
    return replace(toy, weights=weights)
