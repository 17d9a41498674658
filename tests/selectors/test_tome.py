"""ToMe: numbers of the authors' code, and groups that are means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from tests.selectors.merging import merge_step
from vtc.recipe.selectors.tome import ToMeEntry
from vtc.selectors.tome import ToMe
from vtc.visual_tokens import in_grids

GOLDEN = {
    key: torch.from_numpy(value) for key, value in np.load(Path(__file__).parents[1] / "goldens/tome.npz").items()
}


@pytest.mark.parametrize("r", [8, 16, 32, 40])
@pytest.mark.parametrize("cls", [0, 1])
def test_one_step_equals_the_authors_numbers(cls: int, r: int) -> None:
    x, metric = GOLDEN["x"][:, 1 - cls :], GOLDEN["metric"][:, 1 - cls :]
    ones = torch.ones(1, x.shape[1], 1)
    features, sizes = merge_step(x, metric, ones, r, bool(cls))
    case = f"cls{cls}_r{r}"
    torch.testing.assert_close(features, GOLDEN[f"{case}_out"])
    torch.testing.assert_close(features, GOLDEN[f"{case}_meanmode"])
    assert torch.equal(sizes, GOLDEN[f"{case}_size"])
    shares, _ = merge_step(torch.eye(x.shape[1])[None], metric, ones, r, bool(cls))
    torch.testing.assert_close(shares * sizes, GOLDEN[f"{case}_source"].float())


def test_two_steps_carry_sizes_as_the_authors_do() -> None:
    x, sizes = merge_step(GOLDEN["x"], GOLDEN["metric"], torch.ones(1, 65, 1), 8, cls=True)
    x, sizes = merge_step(x, GOLDEN["two_step_metric2"], sizes, 8, cls=True)
    torch.testing.assert_close(x, GOLDEN["two_step_out"])
    assert torch.equal(sizes, GOLDEN["two_step_size"])


def test_steps_end_at_the_budget_with_groups_of_equal_tokens_whole() -> None:
    corners = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).repeat_interleave(12, dim=0)[None]
    selector = ToMe.build(ToMeEntry(), FACTS, RUNNING)
    indices, features = selector.merge(in_grids(corners, ((6, 6),), readings=noted(selector.readings, keys=corners)), 3)
    assert [place // 12 for place in indices[0].tolist()] == [0, 1, 2]
    torch.testing.assert_close(features[0], torch.eye(3))
