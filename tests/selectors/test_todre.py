"""ToDRE against the paper's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from tests.sizes import WITHOUT_CLS
from vtc.recipe.selectors.todre import ToDREEntry
from vtc.selectors.todre import ToDRE, least_alike
from vtc.visual_tokens import VisualTokens

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "todre_selfmade.npz")


@pytest.mark.parametrize("keep", [8, 16, 32])
def test_equals_the_rule_in_order(keep: int) -> None:
    features = torch.from_numpy(GOLDEN["feats"]).float().unsqueeze(0)
    attention = torch.from_numpy(GOLDEN["cls_attn"]).float().unsqueeze(0)
    assert least_alike(features, keep, attention)[0].tolist() == GOLDEN[f"k{keep}_order"].tolist()
    selector = ToDRE.build(ToDREEntry(), FACTS, RUNNING)
    readings = noted(selector.readings, start=attention)
    tokens = VisualTokens(features, torch.arange(64)[None], ((8, 8),), readings, projected=features)
    assert selector.select(tokens, keep)[0].tolist() == GOLDEN[f"k{keep}_idx"].tolist()


def test_without_a_cls_token_it_starts_from_the_token_nearest_to_the_mean() -> None:
    features = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.9, 0.1], [1.0, 0.0, 0.0]]])
    tokens = VisualTokens(features, torch.arange(4)[None], ((2, 2),), projected=features)
    unit = torch.nn.functional.normalize(features, dim=-1)[0]
    nearest = int((unit @ unit.mean(dim=0)).argmax())
    selector = ToDRE.build(ToDREEntry(), WITHOUT_CLS, RUNNING)
    assert selector.select(tokens, 1).tolist() == [[nearest]]
    assert not selector.needs.readings
