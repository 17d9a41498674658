"""GlobalCom2: numbers of the authors' code, and budgets that are met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.selectors.base import top_k
from vtc.selectors.globalcom2 import GlobalCom2, combine, enlarge
from vtc.visual_tokens import Reading, on_grid

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "globalcom2.npz")
LAYER = 23
VIEWS = {"sq2x2": (2, 2), "wide2x2": (2, 2), "row3x1": (1, 3)}


def logits(case: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[f"{case}_cls_scores"])


@pytest.mark.parametrize("rate", [0.25, 0.1])
@pytest.mark.parametrize("case", VIEWS)
def test_shares_of_crops_equal_the_authors(case: str, rate: float) -> None:
    selector = GlobalCom2(LAYER, VIEWS[case], (8, 8), as_published=True)
    factors = selector.factors(logits(case)[:1], VIEWS[case])
    np.testing.assert_allclose(rate * factors[0], GOLDEN[f"R{rate}_{case}_scales_f64"], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.25, 0.1])
@pytest.mark.parametrize("case", ["sq2x2", "row3x1"])
def test_ranks_within_a_crop_equal_the_authors(case: str, rate: float) -> None:
    score = logits(case)
    enlarged = enlarge(score[:1], (8, 8), VIEWS[case])[0]
    ranked = combine(score[1:], enlarged)
    for crop in range(len(enlarged)):
        np.testing.assert_allclose(enlarged[crop], GOLDEN[f"R{rate}_{case}_crop{crop}_global_scores"], rtol=1e-5)
        expected = GOLDEN[f"R{rate}_{case}_crop{crop}_idx"].tolist()
        assert top_k(ranked[crop : crop + 1], len(expected))[0].tolist() == expected


@pytest.mark.parametrize("rate", [0.25, 0.1])
def test_ranks_among_the_patches_that_are_not_padding_equal_the_authors(rate: float) -> None:
    score = logits("wide2x2")
    for crop in range(4):
        first = 16 if crop < 2 else 0
        own = score[1 + crop : 2 + crop, first : first + 48]
        ranked = combine(own, torch.from_numpy(GOLDEN[f"R{rate}_wide2x2_crop{crop}_global_scores"])[None])
        expected = GOLDEN[f"R{rate}_wide2x2_crop{crop}_idx"]
        assert (top_k(ranked, len(expected))[0] + first).tolist() == expected.tolist()


@pytest.mark.parametrize("rate", [0.25, 0.1])
@pytest.mark.parametrize("case", ["sq2x2", "row3x1"])
def test_as_published_contains_what_the_authors_code_keeps(case: str, rate: float) -> None:
    score = logits(case).reshape(1, -1)
    count = score.shape[1]
    tokens = on_grid(torch.zeros(1, count, 1), (count, 1), {Reading("cls_logits", LAYER): score})
    keep = int(count * rate)
    chosen = GlobalCom2(LAYER, VIEWS[case], (8, 8), as_published=True).select(tokens, keep)[0]
    expected = set(GOLDEN[f"R{rate}_{case}_thumb_idx"].tolist())
    for crop in range(VIEWS[case][0] * VIEWS[case][1]):
        expected |= {64 * (1 + crop) + place for place in GOLDEN[f"R{rate}_{case}_crop{crop}_idx"].tolist()}
    assert len(chosen) == keep
    assert expected <= set(chosen.tolist())
    assert len(expected) > keep - 1 - VIEWS[case][0] * VIEWS[case][1]


def test_patches_that_do_not_divide_among_crops_belong_where_their_middle_is() -> None:
    # One patch of each column of 8, of three crops side by side.
    columns = torch.eye(8)
    even = GlobalCom2(LAYER, (1, 3), (1, 8)).factors(100 * columns, (1, 3)).argmax(dim=1)
    published = GlobalCom2(LAYER, (1, 3), (1, 8), as_published=True).factors(100 * columns, (1, 3)).argmax(dim=1)
    assert even.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert published.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
