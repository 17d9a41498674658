"""FoPru against an unofficial implementation, and whole rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from vtc.recipe.selectors.fopru import FoPruEntry
from vtc.selectors.fopru import FoPru
from vtc.visual_tokens import in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "fopru_unofficial.npz")
READS = FoPruEntry().readings(FACTS, RUNNING)


@pytest.mark.parametrize("keep", [8, 16, 32])
def test_rank_equals_the_unofficial_implementation(keep: int) -> None:
    attention = torch.from_numpy(GOLDEN["attn_patch_patch"]).mean(dim=1)
    tokens = in_grids(torch.from_numpy(GOLDEN["feats"]), ((8, 8),), readings=noted(READS, attention=attention))
    assert FoPru(FoPruEntry(), READS).select(tokens, keep)[0].tolist() == GOLDEN[f"rank_k{keep}_idx"].tolist()


def test_rows_are_kept_whole_and_the_last_one_by_score() -> None:
    received = torch.tensor([0.1, 0.2, 0.1, 0.9, 0.5, 0.6, 0.3, 0.8, 0.7])
    tokens = in_grids(torch.zeros(1, 9, 2), ((3, 3),), readings=noted(READS, attention=received.expand(1, 9, 9)))
    assert FoPru(FoPruEntry(strategy="row"), READS).select(tokens, 3)[0].tolist() == [3, 4, 5]
    assert FoPru(FoPruEntry(strategy="row"), READS).select(tokens, 4)[0].tolist() == [3, 4, 5, 7]
    assert FoPru(FoPruEntry(strategy="rank"), READS).select(tokens, 4)[0].tolist() == [3, 5, 7, 8]


def test_each_image_is_read_along_the_side_that_varies_more() -> None:
    varied, flat = torch.tensor([0.1, 0.9, 0.2, 0.8]), torch.full((4, 4), 0.25)
    attention = torch.stack([flat * varied, (flat * varied).T])
    tokens = in_grids(torch.zeros(2, 4, 2), ((2, 2),), readings=noted(READS, attention=attention))
    assert FoPru(FoPruEntry(), READS).select(tokens, 2).tolist() == [[1, 3], [1, 3]]
