"""VisionZip: numbers of the authors' code, and a contextual token that is a mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from tests.sizes import WITHOUT_CLS
from vtc.recipe.selectors.visionzip import VisionZipEntry
from vtc.selectors.visionzip import VisionZip
from vtc.visual_tokens import in_grids

GOLDENS = Path(__file__).parents[1] / "goldens"
READS = VisionZipEntry().readings(FACTS, RUNNING)
WITHOUT_CLS_READS = VisionZipEntry().readings(WITHOUT_CLS, RUNNING)


def entry(contextual: float, as_published: bool = True) -> VisionZipEntry:
    return VisionZipEntry(contextual=contextual, as_published=as_published)


@pytest.mark.parametrize(("count", "dominant", "contextual"), [(64, 7, 2), (64, 13, 3), (64, 26, 6), (576, 53, 10)])
def test_equals_the_authors_numbers(count: int, dominant: int, contextual: int) -> None:
    golden = np.load(GOLDENS / "visionzip.npz")
    read = {key: torch.from_numpy(golden[f"n{count}_{key}"]) for key in ("cls_attn", "hidden", "metric")}
    side = int(count**0.5)
    readings = noted(READS, attention=read["cls_attn"].mean(dim=1), keys=read["metric"][:, 1:])
    image = in_grids(read["hidden"][:, 1:], ((side, side),), readings=readings)
    keep = dominant + contextual
    indices, features = VisionZip(entry(contextual / keep), READS).merge(image, keep)
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
    image = in_grids(hidden, ((8, 8),), readings=noted(WITHOUT_CLS_READS, attention=received, keys=metric))
    indices, features = VisionZip(entry(contextual / keep), WITHOUT_CLS_READS).merge(image, keep)
    dominant = np.sort(golden[f"b{budget}_dominant_idx"][0]).tolist()
    targets = sorted(set(indices[0].tolist()) - set(dominant))
    assert len(targets) == contextual
    torch.testing.assert_close(features, expected[:, np.argsort(dominant + targets)])


def test_a_contextual_token_is_the_mean_of_its_group() -> None:
    features = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 6.0], [0.0, 4.0]]])
    attention = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    image = in_grids(features, ((1, 6),), readings=noted(READS, attention=attention, keys=features))
    indices, merged = VisionZip(entry(2 / 3, as_published=False), READS).merge(image, 3)
    assert indices.tolist() == [[0, 1, 3]]
    assert merged.tolist() == [[[9.0, 9.0], [2.0, 0.0], [0.0, 4.0]]]
