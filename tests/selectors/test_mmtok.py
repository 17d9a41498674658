"""MMTok against the authors' choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.recipe.selectors.mmtok import MMTokEntry
from vtc.selectors.mmtok import MMTok
from vtc.visual_tokens import TextEmbeddings, VisualTokens

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "mmtok.npz")


def golden_tokens(data: str, padding: int) -> VisualTokens:
    """A case's tokens, with rows of padding after the text."""
    features = torch.from_numpy(GOLDEN[f"{data}_vision_clip"])[None]
    projected = torch.from_numpy(GOLDEN[f"{data}_vision_proj"])[None]
    states = torch.from_numpy(GOLDEN[f"{data}_text"])[None]
    mask = torch.tensor([[1] * states.shape[1] + [0] * padding])
    states = torch.cat([states, torch.ones(1, padding, states.shape[2])], dim=1)
    places = torch.arange(features.shape[1])[None]
    return VisualTokens(features, places, (), projected=projected, text=TextEmbeddings(states, mask))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("case", [key for key in GOLDEN if key.endswith("_idx") and "excl" not in key])
def test_equals_the_original(case: str, padding: int) -> None:
    data, temperature, keep, _ = case.split("_")
    selector = MMTok(MMTokEntry(text_temperature=float(temperature.removeprefix("tv"))))
    chosen = selector.select(golden_tokens(data, padding), int(keep[1:]))
    assert chosen[0].tolist() == GOLDEN[case].tolist()


def test_without_text_the_image_alone_is_covered() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.eye(3)[[0, 0, 0, 1, 1, 2]].unsqueeze(0)
    projected = torch.randn(1, 6, 4, generator=generator)
    text = TextEmbeddings(torch.randn(1, 2, 4, generator=generator), torch.zeros(1, 2, dtype=torch.int64))
    tokens = VisualTokens(features, torch.arange(6)[None], ((2, 3),), projected=projected, text=text)
    assert MMTok(MMTokEntry()).select(tokens, 3)[0].tolist() == [0, 3, 5]
