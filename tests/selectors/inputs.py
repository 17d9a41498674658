"""Every selector of the table, and random tokens with everything that one may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from tests.sizes import SMALL
from vtc.facts.layout import Block, Grid, ImageLayout, single_view
from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading, ReadingKind
from vtc.recipe.selectors import ENCODER_SELECTORS
from vtc.recipe.selectors.base import EncoderSelectorEntry
from vtc.selectors import build_selector
from vtc.selectors.base import Selector
from vtc.visual_tokens import TextEmbeddings, VisualTokens, in_grids

WIDTH, TEXT, LAYERS = 8, 5, 4
RUNNING = range(LAYERS - 1)
"""Encoder layers that run; another one follows them."""
OPTIONS: dict[str, dict[str, Any]] = {"learned": {"checkpoint": "pruner.safetensors"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "hiprune as published": {"name": "hiprune", "alpha": 0.6, "as_published": True},
    "fopru by rows": {"name": "fopru", "strategy": "row"},
    "visionzip as published": {"name": "visionzip", "as_published": True},
    "prumerge+": {"name": "prumerge", "spatial": True},
    "prumerge+ as published": {"name": "prumerge", "spatial": True, "as_published": True},
    "cdpruner, negative": {"name": "cdpruner", "relevance": "negative_cosine"},
}
VIEWS = {"hired over views": 3, "globalcom2 over views": 3, "evs": 2}
NAMES = [name for name in ENCODER_SELECTORS if name not in VIEWS] + list(VARIANTS)
"""Selectors of one image, and some of their options; those of several views, and how many, are `VIEWS`."""


def facts_of(layout: ImageLayout, has_cls: bool = True, width: int = WIDTH) -> ModelFacts:
    """Sizes of a small model that serves a layout."""
    encoder = replace(SMALL.encoder, width=width, layers=LAYERS, feature_layer=LAYERS - 2, has_cls=has_cls)
    return replace(SMALL, encoder=encoder, layout=layout)


FACTS = facts_of(single_view((224, 224), (8, 8)))


def noted(reads: Mapping[str, Reading], **values: Tensor) -> dict[Reading, Tensor]:
    """What the encoder gave, said by the names under which a selector reads it."""
    return {reads[name]: value for name, value in values.items()}


def entry_of(name: str) -> EncoderSelectorEntry:
    """The recipe entry of one of the `NAMES` or `VIEWS`."""
    name = name.removesuffix(" over views")
    data = VARIANTS.get(name) or {"name": name, **OPTIONS.get(name, {})}
    return ENCODER_SELECTORS[str(data["name"])].model_validate(data)


def layout_of(name: str, grid: Grid = (8, 8)) -> ImageLayout:
    """One view; or two crops and a full view, or two frames, of this grid each."""
    blocks = (Block(grid),) * views_of(name)
    if name == "evs":
        return ImageLayout((224, 224), grid, blocks, frames=2)
    return ImageLayout((224, 224), grid, blocks, tiles=(1, 2) if name in VIEWS else None)


def make(name: str, grid: Grid = (8, 8), has_cls: bool = True, width: int = WIDTH) -> Selector[Any]:
    """A selector for tokens of this grid, or of as many such grids as it takes."""
    torch.manual_seed(0)  # a network that nobody has trained
    return build_selector(entry_of(name), facts_of(layout_of(name, grid), has_cls, width), RUNNING)


def views_of(name: str) -> int:
    """How many grids of tokens a selector takes."""
    return VIEWS.get(name, 1)


def tokens(batch: int, grid: Grid, seed: int = 0, views: int = 1, width: int = WIDTH) -> VisualTokens:
    """Random tokens of all views, with every reading in every layer, projected, with questions of different length."""
    generator = torch.Generator().manual_seed(seed)
    space = width + 4
    count = grid[0] * grid[1] * views

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    readings: dict[Reading, Tensor] = {}
    for kind in get_args(ReadingKind):
        for layer in range(LAYERS):
            readings[Reading(kind, layer)] = _reading(kind, (batch, count, width), normal)
    mask = torch.ones(batch, TEXT, dtype=torch.long)
    mask[0, :2] = 0
    everything = in_grids(normal(batch, count, width), ((grid[0] * views, grid[1]),), readings=readings)
    return replace(
        everything,
        projected=normal(batch, count, space),
        text=TextEmbeddings(normal(batch, TEXT, space), mask),
    )


def _reading(kind: str, shape: tuple[int, int, int], normal: object) -> Tensor:
    assert callable(normal)
    batch, count, width = shape
    shapes = {
        "patch_attention": (batch, count, count),
        "keys": (batch, count, 4),
        "full_keys": (batch, count, width),
        "hidden_states": (batch, count, width),
        "cls_state": (batch, width),
    }
    values: Tensor = normal(*shapes.get(kind, (batch, count)))
    return torch.softmax(values, dim=-1) if "attention" in kind else values


def rows(batch: VisualTokens, chosen: slice) -> VisualTokens:
    """Some images of a batch."""
    assert batch.projected is not None
    assert batch.text is not None
    return VisualTokens(
        features=batch.features[chosen],
        indices=batch.indices[chosen],
        grids=batch.grids,
        readings={reading: value[chosen] for reading, value in batch.readings.items()},
        projected=batch.projected[chosen],
        text=TextEmbeddings(batch.text.states[chosen], batch.text.mask[chosen]),
    )


def mapped(batch: VisualTokens, change: object) -> VisualTokens:
    """Tokens with a function applied to every float tensor in them."""
    assert callable(change)
    assert batch.projected is not None
    assert batch.text is not None
    return replace(
        batch,
        features=change(batch.features),
        readings={reading: change(value) for reading, value in batch.readings.items()},
        projected=change(batch.projected),
        text=replace(batch.text, states=change(batch.text.states)),
    )
