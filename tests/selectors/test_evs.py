"""EVS: numbers of the authors' code, and budgets below one frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import image
from vtc.models.base import VLMAdapter
from vtc.models.tiny import PATCH
from vtc.selectors.evs import EVS
from vtc.vision_encoder import VisionEncoder
from vtc.visual_tokens import VisualTokens, join_views, on_grid

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "evs.npz")
FRAMES = 6


def video() -> VisualTokens:
    frames = torch.from_numpy(GOLDEN["video_embeds"])[None]
    return replace(on_grid(torch.zeros(1, 288, 1), (36, 8)), projected=frames)


@pytest.mark.parametrize("rate", [0.5, 0.75, 0.9])
def test_equals_the_authors_numbers(rate: float) -> None:
    expected = np.flatnonzero(GOLDEN[f"q{rate}_mask"]).tolist()
    assert EVS(FRAMES).select(video(), len(expected))[0].tolist() == expected


def test_a_budget_below_one_frame_is_spread_over_the_first() -> None:
    assert EVS(FRAMES).select(video(), 4)[0].tolist() == [6, 18, 30, 42]


def test_a_list_of_images_is_a_video(adapter: VLMAdapter) -> None:
    """Of a still picture nothing but the first frame is kept; a change is, and only where it is."""
    still, changed = image(1), image(1)
    changed.paste((255, 255, 255), (0, 0, PATCH, PATCH))
    encoder = VisionEncoder(adapter, [0])
    with torch.inference_mode():
        tokens = encoder.tokens(adapter.preprocess([still, still, changed]))
        tokens = join_views(replace(tokens, projected=adapter.projector(tokens.features)), 3)
    assert tokens.features.shape[:2] == (1, 48)
    kept = EVS(frames=3).prune(tokens, 17)
    assert kept.indices[0].tolist() == [*range(16), 32]
    assert kept.projected is not None
    assert kept.projected.shape[1] == 17


def test_tokens_that_are_not_whole_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="288 visual tokens are not 7 frames"):
        EVS(7).select(video(), 48)
