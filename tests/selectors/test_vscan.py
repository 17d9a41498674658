"""VScan against the authors' choice and merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import noted
from tests.sizes import LLAVA_15
from vtc.recipe.selectors.vscan import VScanEntry
from vtc.selectors.vscan import VScan, averaged, by_window
from vtc.visual_tokens import VisualTokens

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "vscan.npz")
READS = VScanEntry().readings(LLAVA_15, range(23))


def golden_tokens() -> VisualTokens:
    features = torch.from_numpy(GOLDEN["feats"])
    local, overall = (torch.from_numpy(GOLDEN[f"cls_attn_{name}"]).mean(dim=1) for name in ("layer5", "layer_m2"))
    readings = noted(READS, local=local, overall=overall)
    return VisualTokens(features * 2, torch.arange(576)[None], ((24, 24),), readings, projected=features)


def test_reads_the_layers_of_the_original() -> None:
    assert [READS[name].layer for name in ("local", "overall")] == [5, 22]


@pytest.mark.parametrize("keep", [64, 96, 192])
def test_equals_the_original(keep: int) -> None:
    tokens = golden_tokens()
    kept = VScan(VScanEntry(), READS).prune(tokens, keep)
    assert kept.indices[0].tolist() == GOLDEN[f"k{keep}_idx"].tolist()
    assert kept.projected is not None
    np.testing.assert_allclose(kept.projected[0].numpy(), GOLDEN[f"k{keep}_merged_out"], atol=1e-5)
    assert torch.equal(kept.features, tokens.features[:, kept.indices[0]])


def test_the_remainder_of_the_local_half_is_not_lost() -> None:
    """Of 80 the original keeps 72, since 40 is no multiple of 16 windows."""
    expected = GOLDEN["k80_idx"].tolist()
    assert len(expected) == 72
    chosen = VScan(VScanEntry(), READS).select(golden_tokens(), 80)[0].tolist()
    assert len(chosen) == 80
    assert set(expected) <= set(chosen)


@pytest.mark.parametrize("keep", [8, 16, 24])
def test_windows_of_the_original_for_qwen(keep: int) -> None:
    """It cuts 9 x 10 patches into 4 x 4, and what is left over goes to the last."""
    windows = [min(row // 4, 1) * 2 + min(column // 4, 1) for row in range(9) for column in range(10)]
    chosen = by_window(torch.from_numpy(GOLDEN["qwen_scores_9x10"]).unsqueeze(0), windows, keep)
    assert sorted(chosen[0].tolist()) == sorted(GOLDEN[f"qwen_win4_k{keep}_order"].tolist())


def test_a_window_without_more_tokens_is_passed_over() -> None:
    score = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.1]])
    assert by_window(score, [0, 0, 0, 0, 1], 4)[0].tolist() == [0, 4, 1, 2]


def test_every_corner_of_any_grid_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(1, 35, generator=generator)
    readings = noted(READS, local=score, overall=score)
    features = torch.randn(1, 35, 4, generator=generator)
    tokens = VisualTokens(features, torch.arange(35)[None], ((5, 7),), readings, projected=features)
    chosen = VScan(VScanEntry(windows=2), READS).select(tokens, 8)[0]
    quarters = {(int(place) // 7 * 2 // 5, int(place) % 7 * 2 // 7) for place in chosen}
    assert len(quarters) == 4


def test_merging_keeps_the_type() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]]).half()
    merged = averaged(features, torch.tensor([[0, 1]]))
    assert merged.dtype == torch.float16
    assert merged.tolist() == [[[1.0, 0.0], [0.0, 2.0]]]
