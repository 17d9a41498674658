"""VisPruner against the authors' choice, and where their code stops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from vtc.recipe.selectors.vispruner import VisPrunerEntry
from vtc.selectors.vispruner import VisPruner
from vtc.visual_tokens import VisualTokens, in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "vispruner.npz")
READS = VisPrunerEntry().readings(FACTS, RUNNING)


def golden_tokens(count: int) -> VisualTokens:
    side = int(count**0.5)
    attention = torch.from_numpy(GOLDEN[f"n{count}_cls_attn"]).mean(dim=1)
    features = torch.from_numpy(GOLDEN[f"n{count}_feats"])
    return in_grids(features, ((side, side),), readings=noted(READS, attention=attention))


@pytest.mark.parametrize("case", [key for key in GOLDEN if key.endswith("_idx")])
def test_equals_the_original(case: str) -> None:
    count, keep, important = (part[1:] for part in case.split("_")[:3])
    chosen = VisPruner(VisPrunerEntry(important=float(important)), READS).select(golden_tokens(int(count)), int(keep))
    assert chosen[0].tolist() == GOLDEN[case].tolist()


@pytest.mark.parametrize(("keep", "important"), [(8, 0.5), (1, 0.5), (9, 0.0), (63, 0.3)])
def test_few_pairs_and_odd_lists_are_thinned_too(keep: int, important: float) -> None:
    tokens = golden_tokens(64)
    chosen = VisPruner(VisPrunerEntry(important=important), READS).select(tokens, keep)[0].tolist()
    assert len(set(chosen)) == keep
    order = tokens.readings[READS["attention"]][0].argsort(descending=True).tolist()
    assert set(order[: int(keep * important)]) <= set(chosen)


def test_duplicates_go_first() -> None:
    features = torch.eye(6)[[0, 1, 0, 1, 2, 3]].unsqueeze(0)
    attention = torch.tensor([[0.9, 0.8, 0.1, 0.2, 0.7, 0.6]])
    tokens = in_grids(features, ((2, 3),), readings=noted(READS, attention=attention))
    kept = VisPruner(VisPrunerEntry(important=0.0), READS).select(tokens, 4)[0]
    assert len(torch.unique(features[0, kept], dim=0)) == 4
