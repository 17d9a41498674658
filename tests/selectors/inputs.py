"""Every selector of the table, and random tokens with everything that one may read."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from tests.sizes import SMALL
from vtc.facts.layout import single_view
from vtc.facts.views import whole_views
from vtc.recipe.selectors import ENCODER_SELECTORS
from vtc.selectors import BuildContext, build_selector
from vtc.selectors.base import Selector
from vtc.selectors.evs import EVS
from vtc.selectors.globalcom2 import GlobalCom2
from vtc.selectors.hired import HiRED
from vtc.visual_tokens import Reading, ReadingKind, TextEmbeddings, VisualTokens, in_grids

Grid = tuple[int, int]
WIDTH, TEXT, LAYERS = 8, 5, 4
OPTIONS = {"learned": {"checkpoint": "pruner.safetensors"}}
VARIANTS = {
    "hiprune as published": {"name": "hiprune", "alpha": 0.6, "as_published": True},
    "fopru by rows": {"name": "fopru", "strategy": "row"},
    "visionzip as published": {"name": "visionzip", "as_published": True},
    "prumerge+": {"name": "prumerge", "spatial": True},
    "prumerge+ as published": {"name": "prumerge", "spatial": True, "as_published": True},
    "cdpruner, negative": {"name": "cdpruner", "relevance": "negative_cosine"},
}
VIEWS = ("hired over views", "globalcom2 over views", "evs")
NAMES = [name for name in ENCODER_SELECTORS if name not in VIEWS] + list(VARIANTS)
"""Selectors of one image, and some of their options; those of several views are `VIEWS`."""


def make(name: str, grid: Grid = (8, 8), width: int = WIDTH) -> Selector:
    """A selector; those of several views take a full view and two crops, or two frames, of this grid each."""
    if name == "hired over views":
        return HiRED(0, 2, whole_views(grid, (1, 2)))
    if name == "globalcom2 over views":
        return GlobalCom2(3, whole_views(grid, (1, 2)))
    if name == "evs":
        return EVS(frames=2)
    torch.manual_seed(0)
    data = VARIANTS.get(name) or {"name": name, **OPTIONS.get(name, {})}
    encoder = replace(SMALL.encoder, width=width, layers=LAYERS, feature_layer=LAYERS - 2)
    entry = ENCODER_SELECTORS[str(data["name"])].model_validate(data)
    facts = replace(SMALL, encoder=encoder, layout=single_view((224, 224), grid))
    layers = (1,) if name == "cls_attention" else entry.layers_read(facts, range(LAYERS - 1))
    return build_selector(entry, BuildContext(facts, layers))


def views_of(name: str) -> int:
    """How many grids of tokens a selector takes."""
    return {"hired over views": 3, "globalcom2 over views": 3, "evs": 2}.get(name, 1)


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
    shapes = {"patch_attention": (batch, count, count), "keys": (batch, count, 4), "full_keys": (batch, count, width)}
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
