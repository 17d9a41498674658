"""EVS: numbers of the authors' code, and budgets below one frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import GRID, IMAGE, compressed, image
from vtc.facts.layout import Block, ImageLayout
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny import PATCH
from vtc.recipe.selectors.evs import EVSEntry
from vtc.selectors.evs import EVS
from vtc.visual_tokens import VisualTokens, in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "evs.npz")
FRAMES = 6


def video() -> VisualTokens:
    frames = torch.from_numpy(GOLDEN["video_embeds"])[None]
    return replace(in_grids(torch.zeros(1, 288, 1), ((36, 8),)), projected=frames)


@pytest.mark.parametrize("rate", [0.5, 0.75, 0.9])
def test_equals_the_authors_numbers(rate: float) -> None:
    expected = np.flatnonzero(GOLDEN[f"q{rate}_mask"]).tolist()
    assert EVS(EVSEntry(), FRAMES).select(video(), len(expected))[0].tolist() == expected


def test_a_budget_below_one_frame_is_spread_over_the_first() -> None:
    assert EVS(EVSEntry(), FRAMES).select(video(), 4)[0].tolist() == [6, 18, 30, 42]


def test_a_recipe_keeps_what_changes_of_a_clip(adapter: VLMAdapter) -> None:
    """Of a still picture nothing but the first frame is kept; a change is, and only where it is."""
    still, changed = image(1), image(1)
    changed.paste((255, 255, 255), (0, 0, PATCH, PATCH))
    clip = adapter.with_layout(ImageLayout((IMAGE, IMAGE), (GRID, GRID), (Block((GRID, GRID)),) * 3, frames=3))
    model = compressed(clip, {"kind": "prune", "keep": 17, "selector": "evs", "positions": "original"})
    # One encoder layer, so that a change stays where it is.
    model.vision.layers = (0,)
    pixels = clip.preprocess([still, still, changed])
    with torch.inference_mode():
        features, kept = model.vision(pixels[None])
    assert kept[0].tolist() == [*range(16), 32]
    assert features.shape == (1, 17, clip.facts.decoder.width)


def test_tokens_that_are_not_whole_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="288 visual tokens are not 7 frames"):
        EVS(EVSEntry(), 7).select(video(), 48)
