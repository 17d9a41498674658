"""VisionZip: numbers of the authors' code, and a contextual token that is a mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vtc.selectors.visionzip import VisionZip
from vtc.visual_tokens import Reading, ReadingKind, VisualTokens, in_grids

GOLDENS = Path(__file__).parents[1] / "goldens"
LAYER = 22


def tokens(features: Tensor, grid: tuple[int, int], attention: Tensor, keys: Tensor, kind: ReadingKind) -> VisualTokens:
    readings = {Reading(kind, LAYER): attention, Reading("keys", LAYER): keys}
    return in_grids(features, (grid,), readings=readings)


@pytest.mark.parametrize(("count", "dominant", "contextual"), [(64, 7, 2), (64, 13, 3), (64, 26, 6), (576, 53, 10)])
def test_equals_the_authors_numbers(count: int, dominant: int, contextual: int) -> None:
    golden = np.load(GOLDENS / "visionzip.npz")
    read = {key: torch.from_numpy(golden[f"n{count}_{key}"]) for key in ("cls_attn", "hidden", "metric")}
    side = int(count**0.5)
    image = tokens(
        read["hidden"][:, 1:], (side, side), read["cls_attn"].mean(dim=1), read["metric"][:, 1:], "cls_attention"
    )
    keep = dominant + contextual
    indices, features = VisionZip(LAYER, contextual / keep, as_published=True).merge(image, keep)
    case = f"n{count}_d{dominant}_c{contextual}"
    places = np.sort(golden[f"{case}_all_indices"][0, 1:] - 1).tolist()
    places += (golden[f"{case}_context_target_idx"] - 1).tolist()
    assert indices[0].tolist() == sorted(places)
    expected = torch.from_numpy(golden[f"{case}_out"])[:, 1:]
    torch.testing.assert_close(features, expected[:, np.argsort(places)])


@pytest.mark.parametrize(("budget", "contextual"), [(0.125, 1), (0.25, 2), (0.5, 5)])
def test_without_cls_token_equals_the_port_for_siglip(budget: float, contextual: int) -> None:
    golden = np.load(GOLDENS / "visionzip_siglip.npz")
    received = torch.from_numpy(golden["attn"]).mean(dim=(1, 2))
    hidden, metric = (torch.from_numpy(golden[key]) for key in ("hidden", "metric"))
    expected = torch.from_numpy(golden[f"b{budget}_out"])
    keep = expected.shape[1]
    selector = VisionZip(LAYER, contextual / keep, has_cls=False, as_published=True)
    indices, features = selector.merge(tokens(hidden, (8, 8), received, metric, "received_attention"), keep)
    dominant = np.sort(golden[f"b{budget}_dominant_idx"][0]).tolist()
    targets = sorted(set(indices[0].tolist()) - set(dominant))
    assert len(targets) == contextual
    torch.testing.assert_close(features, expected[:, np.argsort(dominant + targets)])


def test_a_contextual_token_is_the_mean_of_its_group() -> None:
    features = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 6.0], [0.0, 4.0]]])
    attention = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    image = tokens(features, (1, 6), attention, features, "cls_attention")
    indices, merged = VisionZip(LAYER, contextual=2 / 3).merge(image, 3)
    assert indices.tolist() == [[0, 1, 3]]
    assert merged.tolist() == [[[9.0, 9.0], [2.0, 0.0], [0.0, 4.0]]]
