"""Turbo: numbers of the authors' code, and important tokens that are not merged away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from tests.selectors.merging import merge_step
from vtc.recipe.selectors.turbo import TurboEntry
from vtc.selectors.turbo import ATTENTION_SCALE, Turbo
from vtc.visual_tokens import in_grids

GOLDEN = {
    key: torch.from_numpy(value) for key, value in np.load(Path(__file__).parents[1] / "goldens/turbo.npz").items()
}


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("r", [8, 16, 32])
def test_one_step_equals_the_authors_numbers(r: int, alpha: float) -> None:
    importance = alpha * ATTENTION_SCALE * GOLDEN["attn_cls"]
    ones = torch.ones(1, 65, 1)
    features, sizes = merge_step(GOLDEN["x"], GOLDEN["metric"], ones, r, True, importance)
    case = f"r{r}_alpha{alpha}"
    torch.testing.assert_close(features, GOLDEN[f"{case}_out"])
    assert torch.equal(sizes, GOLDEN[f"{case}_size"])
    shares, _ = merge_step(torch.eye(65)[None], GOLDEN["metric"], ones, r, True, importance)
    torch.testing.assert_close(shares * sizes, GOLDEN[f"{case}_source"].float())


def test_what_the_cls_token_looks_at_is_not_merged_away() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 36, 8)
    attention = torch.full((1, 36), 0.01)
    attention[0, [4, 10]] = 0.3
    selector = Turbo.build(TurboEntry(), FACTS, RUNNING)
    readings = noted(selector.readings, keys=features, attention=attention)
    indices, merged = selector.merge(in_grids(features, ((6, 6),), readings=readings), 18)
    assert {4, 10} <= set(indices[0].tolist())
    assert merged.shape == (1, 18, 8)
