"""Tiny models, images and recipes that many tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.models.base import VLMAdapter
from vtc.models.random.shapes import TINY, Shape
from vtc.models.random.tiny import PATCH, write_tiny_llava
from vtc.recipe import Recipe

GRID = 4
IMAGE = GRID * PATCH


def write_checkpoint(path: Path, seed: int = 0, feature_layer: int = -2, like: Shape = TINY) -> Path:
    """A checkpoint of 16 visual tokens, 3 encoder and 4 decoder layers."""
    return write_tiny_llava(
        path, grid=GRID, encoder_layers=3, decoder_layers=4, feature_layer=feature_layer, seed=seed, like=like
    )


def recipe(*stages: dict[str, Any]) -> Recipe:
    """A recipe of these stages."""
    return Recipe.model_validate({"version": 1, "name": "test", "stages": list(stages)})


def compressed(adapter: VLMAdapter, *stages: dict[str, Any]) -> CompressedModel:
    """A model with these stages applied."""
    return apply_recipe(adapter, recipe(*stages))


def image(seed: int, size: tuple[int, int] = (IMAGE, IMAGE)) -> Image.Image:
    """A random image of (width, height) pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def processor(adapter: VLMAdapter) -> Any:
    """The checkpoint's own processor."""
    load: Any = AutoProcessor.from_pretrained
    return load(adapter.path, local_files_only=True)


RECIPES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "cls": [{"kind": "prune", "keep": 5, "selector": "cls_attention"}],
    "cls_layers": [{"kind": "prune", "keep": 4, "selector": {"name": "cls_attention", "last": 2}}],
    "original": [{"kind": "prune", "keep": 5, "selector": "uniform", "positions": "original"}],
    "random": [{"kind": "prune", "keep": 0.25, "selector": {"name": "random", "seed": 3}}],
    "fourier": [{"kind": "frequency_filter", "keep": 4}],
    "fourier_original": [
        {"kind": "frequency_filter", "keep": 9},
        {"kind": "prune", "keep": 4, "selector": "uniform", "positions": "original"},
    ],
    "projected": [{"kind": "project", "keep": 4, "projector": "m3"}],
    "projected_and_cut": [
        {"kind": "frequency_filter", "keep": 9},
        {"kind": "project", "keep": 9, "projector": "m3"},
        {"kind": "prune_in_decoder", "layer": 2, "keep": 5},
    ],
    "exit": [{"kind": "visual_exit", "layer": 2}],
    "visual_only": [{"kind": "drop_layers", "layers": [1, 2], "visual_only": True}],
    "visual_only_first": [{"kind": "drop_layers", "layers": [0], "visual_only": True}],
    "depth": [{"kind": "drop_layers", "layers": [2]}],
    "cut": [{"kind": "prune_in_decoder", "layer": 2, "keep": 5}],
    "learnpruner": [
        {"kind": "prune", "keep": 7, "selector": "cls_attention", "positions": "original"},
        {"kind": "prune_in_decoder", "layer": 0.375, "keep": 3},
    ],
    "cuts": [
        {"kind": "prune_in_decoder", "layer": 1, "keep": 0.5, "selector": {"queries": "last_token"}},
        {"kind": "prune_in_decoder", "layer": 2, "keep": 0.5, "selector": {"queries": "raters", "rope": False}},
        {"kind": "visual_exit", "layer": 3},
    ],
    "skip_after_cut": [
        {"kind": "prune_in_decoder", "layer": 1, "keep": 6, "selector": {"queries": "all_text"}},
        {"kind": "drop_layers", "layers": [2], "visual_only": True},
    ],
    "text_aware": [{"kind": "prune", "keep": 5, "selector": "mmtok", "positions": "original"}],
    "filter_and_text": [
        {"kind": "frequency_filter", "keep": 9},
        {"kind": "prune", "keep": 4, "selector": "cdpruner"},
    ],
    "merged": [{"kind": "prune", "keep": 6, "selector": {"name": "visionzip", "contextual": 0.5}}],
    "merged_after_the_projector": [
        {"kind": "prune", "keep": 9, "selector": "vscan"},
        {"kind": "prune_in_decoder", "layer": 2, "keep": 5, "selector": "fastv"},
    ],
    "merged_in_the_decoder": [
        {"kind": "prune_in_decoder", "layer": 1, "keep": 8, "selector": {"name": "sparsevlm", "recycle": 0.5}},
        {"kind": "prune_in_decoder", "layer": 2, "keep": 5, "selector": {"name": "visiondrop", "contextual": 0.4}},
        {"kind": "prune_in_decoder", "layer": 3, "keep": 3, "selector": "dart"},
    ],
    "everything": [
        {"kind": "drop_layers", "component": "encoder", "layers": [0]},
        {"kind": "frequency_filter", "keep": 9},
        {"kind": "prune", "keep": 3, "selector": "uniform"},
        {"kind": "drop_layers", "layers": [1], "visual_only": True},
        {"kind": "visual_exit", "layer": 3},
    ],
}
"""One recipe for each thing that can be done, and one of all at once."""

WITHOUT_CLS = [
    name for name in RECIPES if name not in ("cls", "cls_layers", "learnpruner", "merged_after_the_projector")
]
"""Those that a tower without a CLS token can take."""
