"""GlobalCom2: numbers of the authors' code, and budgets that are met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from vtc.compressed.assembly import assemble
from vtc.facts.layout import Block, ImageLayout
from vtc.facts.views import Views, views_of, whole_views
from vtc.recipe.selectors.globalcom2 import GlobalCom2Entry
from vtc.selectors.base import top_k
from vtc.selectors.globalcom2 import GlobalCom2, enlarge
from vtc.visual_tokens import in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "globalcom2.npz")
READS = GlobalCom2Entry().readings(FACTS, RUNNING)
AS_PUBLISHED = GlobalCom2Entry(as_published=True)
GRID = (8, 8)
PADDED = ImageLayout((160, 320), GRID, (Block(GRID), Block((12, 16), views=(2, 2), offset=(2, 0))))
"""Of the authors' wide image: a quarter of each crop, above or below, is padding."""
VIEWS = {"sq2x2": whole_views(GRID, (2, 2)), "wide2x2": views_of(PADDED), "row3x1": whole_views(GRID, (1, 3))}


def logits(case: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[f"{case}_cls_scores"])


def given(case: str) -> tuple[torch.Tensor, Views]:
    """Logits (1, N) of a case's tokens, padding left out, and what these are."""
    views = VIEWS[case]
    assert views is not None
    score = logits(case)
    if case == "wide2x2":
        return assemble(score, PADDED), views
    return score.reshape(1, -1), views


def authors(case: str, rate: float, crop: int) -> list[int]:
    """What the authors' code keeps of a crop, best first, by place among the patches that are not padding."""
    padding = 16 if case == "wide2x2" and crop < 2 else 0
    found: list[int] = (GOLDEN[f"R{rate}_{case}_crop{crop}_idx"] - padding).tolist()
    return found


@pytest.mark.parametrize("rate", [0.25, 0.1])
@pytest.mark.parametrize("case", VIEWS)
def test_shares_of_crops_equal_the_authors(case: str, rate: float) -> None:
    _, views = given(case)
    factors = GlobalCom2(AS_PUBLISHED, READS, views).factors(logits(case)[:1], views)
    np.testing.assert_allclose(rate * factors[0], GOLDEN[f"R{rate}_{case}_scales_f64"], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.25, 0.1])
@pytest.mark.parametrize("case", VIEWS)
def test_ranks_within_a_crop_equal_the_authors(case: str, rate: float) -> None:
    score, views = given(case)
    enlarged = enlarge(logits(case)[:1], GRID, views.picture)[0]
    ranked = GlobalCom2(GlobalCom2Entry(), READS, views).scores(score, logits(case)[:1], views)
    for crop in range(views.number):
        own = views.tokens_of(1 + crop)
        shown = enlarged[[views.cells[place] for place in own]]
        np.testing.assert_allclose(shown, GOLDEN[f"R{rate}_{case}_crop{crop}_global_scores"], rtol=1e-5)
        expected = authors(case, rate, crop)
        assert top_k(ranked[:, own], len(expected))[0].tolist() == expected


@pytest.mark.parametrize("rate", [0.25, 0.1])
@pytest.mark.parametrize("case", VIEWS)
def test_as_published_contains_what_the_authors_code_keeps(case: str, rate: float) -> None:
    score, views = given(case)
    count = score.shape[1]
    tokens = in_grids(torch.zeros(1, count, 1), ((count, 1),), readings=noted(READS, scores=score))
    keep = int(count * rate)
    chosen = GlobalCom2(AS_PUBLISHED, READS, views).select(tokens, keep)[0]
    expected = set(GOLDEN[f"R{rate}_{case}_thumb_idx"].tolist())
    for crop in range(views.number):
        own = views.tokens_of(1 + crop)
        expected |= {own[place] for place in authors(case, rate, crop)}
    assert len(chosen) == keep
    assert expected <= set(chosen.tolist())
    assert len(expected) > keep - 1 - views.number


def test_patches_that_do_not_divide_among_crops_belong_where_their_middle_is() -> None:
    # One patch of each column of 8, of three crops side by side.
    columns, views = torch.eye(8), whole_views((1, 8), (1, 3))
    even = GlobalCom2(GlobalCom2Entry(), READS, views).factors(100 * columns, views).argmax(dim=1)
    published = GlobalCom2(AS_PUBLISHED, READS, views).factors(100 * columns, views).argmax(dim=1)
    assert even.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert published.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
