"""HiPrune against the authors' choice, and where it is meant to differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from vtc.recipe.selectors.hiprune import HiPruneEntry
from vtc.selectors.hiprune import HiPrune, hierarchical
from vtc.visual_tokens import in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "hiprune.npz")
QWEN = np.load(Path(__file__).parents[1] / "goldens" / "hiprune_qwen.npz")
READS = HiPruneEntry().readings(FACTS, RUNNING)
GRIDS = {"8x8": (8, 8), "6x10": (6, 10), "sinks": (8, 8)}


def received(attention: np.ndarray) -> torch.Tensor:
    """Attention (1, H, 1 + N, 1 + N) as each patch receives it."""
    return torch.from_numpy(attention).float().mean(dim=(1, 2))[:, 1:]


@pytest.mark.parametrize("case", [key for key in GOLDEN if key.endswith("_idx")])
def test_as_published_equals_the_original(case: str) -> None:
    size, keep, alpha = case.split("_")[:3]
    count = int(size[1:])
    side = int(count**0.5)
    found, deep = (
        (GOLDEN["n64_attn"][1], GOLDEN["n64_attn"][2])
        if count == 64
        else (GOLDEN["n576_attn_object_f16"], GOLDEN["n576_attn_deep_f16"])
    )
    readings = noted(READS, object=received(found), deep=received(deep))
    tokens = in_grids(torch.zeros(1, count, 2), ((side, side),), readings=readings)
    selector = HiPrune(HiPruneEntry(alpha=float(alpha[1:]), as_published=True), READS)
    assert selector.select(tokens, int(keep[1:]))[0].tolist() == GOLDEN[case].tolist()


def qwen(case: str) -> tuple[torch.Tensor, int]:
    name, ratio, alpha = case.split("_")[0], *case.split("_")[-3:-1]
    rows, columns = GRIDS[name]
    count = rows * columns
    scale = count if "colsum" in case else 1
    found, deep = (torch.from_numpy(QWEN[f"{name}_score_{kind}"]).unsqueeze(0) * scale for kind in ("object", "deep"))
    keep = round(count * float(ratio[1:]))
    return hierarchical(found, deep, ((rows, columns),), keep, float(alpha[1:]), as_published=True)[0], keep


@pytest.mark.parametrize("case", [key for key in QWEN if key.endswith("_idx") and not key.startswith("sinks")])
def test_as_published_equals_the_original_for_qwen(case: str) -> None:
    assert qwen(case)[0].tolist() == QWEN[case].tolist()


@pytest.mark.parametrize("case", [key for key in QWEN if key.endswith("_idx") and key.startswith("sinks")])
def test_shared_sinks_do_not_cost_budget(case: str) -> None:
    chosen, keep = qwen(case)
    assert len(QWEN[case]) < keep
    assert len(set(chosen.tolist())) == keep
    assert set(QWEN[case].tolist()) <= set(chosen.tolist())


@pytest.mark.parametrize(
    ("anchor", "beside", "published"),
    [(8, {4, 9, 12}, {4, 7, 9, 12}), (0, {1, 4}, {1, 4}), (15, {11, 14}, {11, 14}), (14, {10, 13, 15}, {10, 13, 15})],
)
def test_neighbours_end_with_the_row(anchor: int, beside: set[int], published: set[int]) -> None:
    found = torch.zeros(1, 16)
    found[0, anchor] = 1
    for as_published, expected in ((False, beside), (True, published)):
        keep = len(expected) + 1
        chosen = hierarchical(found, torch.zeros(1, 16), ((4, 4),), keep, 5 / keep, as_published)
        assert set(chosen[0].tolist()) == expected | {anchor}


def test_anchors_come_before_neighbours_where_the_budget_is_short() -> None:
    found = torch.zeros(1, 64)
    found[0, [9, 13, 41, 45]] = 1
    deep = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    assert hierarchical(found, deep, ((8, 8),), 4, 5.0)[0].tolist() == [9, 13, 41, 45]
