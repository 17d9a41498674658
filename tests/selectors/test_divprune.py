"""DivPrune against the authors' choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.recipe.selectors.divprune import DivPruneEntry
from vtc.selectors.divprune import DivPrune, farthest
from vtc.visual_tokens import VisualTokens

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "divprune.npz")


@pytest.mark.parametrize("case", [key.removesuffix("_order") for key in GOLDEN if key.endswith("_order")])
def test_equals_the_original_in_order(case: str) -> None:
    features = torch.from_numpy(GOLDEN[case.split("_")[0] + "_feats"]).unsqueeze(0)
    expected = GOLDEN[case + "_order"].tolist()
    assert farthest(features, len(expected))[0].tolist() == expected
    tokens = VisualTokens(features[..., :1], torch.arange(features.shape[1])[None], (), projected=features)
    assert DivPrune(DivPruneEntry()).select(tokens, len(expected))[0].tolist() == sorted(expected)


def test_a_duplicate_comes_last() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]])
    assert farthest(features, 4)[0].tolist()[-1] in (0, 2)
