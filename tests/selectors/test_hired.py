"""HiRED: numbers of the authors' code, budgets that are met, and votes for the crop that a patch lies in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import noted
from vtc.facts.views import whole_views
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.hired import HiREDEntry
from vtc.selectors.hired import HiRED
from vtc.visual_tokens import VisualTokens, in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "hired.npz")
READS = {"first": Reading("cls_attention", 0), "last": Reading("cls_attention", 22)}


def image(first: torch.Tensor, last: torch.Tensor) -> VisualTokens:
    readings = noted(READS, first=first, last=last)
    return in_grids(torch.zeros(1, first.shape[1], 1), ((first.shape[1], 1),), readings=readings)


def golden_image() -> VisualTokens:
    first, last = (torch.from_numpy(GOLDEN[f"{key}_layer_cls_attn"]).mean(dim=1) for key in ("first", "last"))
    return image(first.reshape(1, -1), last.reshape(1, -1))


@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
@pytest.mark.parametrize(("columns", "rows"), [(2, 2), (4, 1), (1, 4)])
def test_as_published_contains_what_the_authors_code_keeps(columns: int, rows: int, rate: float, share: float) -> None:
    case = f"g{columns}x{rows}_rate{rate}_alpha{share}"
    expected = np.flatnonzero(GOLDEN[f"{case}_mask"]).tolist()
    keep = int(320 * rate)
    views = whole_views((8, 8), (rows, columns))
    selector = HiRED(HiREDEntry(share=share, as_published=True), READS, views)
    tokens = golden_image()
    budgets = selector.budgets(selector.read(tokens, "first")[:, :64], keep, views)
    assert budgets[0, 1:].floor().int().tolist() == GOLDEN[f"{case}_sub_budgets"].tolist()
    chosen = selector.select(tokens, keep)[0].tolist()
    assert len(chosen) == keep
    assert set(expected) <= set(chosen)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_a_single_view_equals_the_authors_code(rate: float) -> None:
    last = torch.from_numpy(GOLDEN["last_layer_cls_attn"])[:1].mean(dim=1)
    chosen = HiRED(HiREDEntry(), READS).select(image(last, last), int(64 * rate))
    assert chosen[0].tolist() == np.flatnonzero(GOLDEN[f"single_rate{rate}_mask"]).tolist()


@pytest.mark.parametrize(("as_published", "expected"), [(False, [4, 0, 2, 0, 2]), (True, [4, 1, 1, 1, 1])])
def test_patches_vote_for_the_crop_that_they_lie_in(as_published: bool, expected: list[int]) -> None:
    # The right half of the image is what is looked at.
    full = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1).reshape(1, 16)
    tokens = image(torch.cat([full, torch.zeros(1, 64)], dim=1), torch.arange(80.0)[None])
    selector = HiRED(HiREDEntry(as_published=as_published), READS, whole_views((4, 4), (2, 2)))
    counts = torch.bincount(selector.select(tokens, 8)[0] // 16, minlength=5)
    assert counts.tolist() == expected


def test_tokens_that_are_not_whole_views_are_refused() -> None:
    with pytest.raises(ValueError, match="82 visual tokens are not the 80 of all views"):
        HiRED(HiREDEntry(), READS, whole_views((4, 4), (2, 2))).select(image(torch.ones(1, 82), torch.ones(1, 82)), 8)
