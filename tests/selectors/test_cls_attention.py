"""CLS attention: the authors' own choices, of one layer and of several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.sizes import LLAVA_15
from vtc.recipe.selectors.cls_attention import ClsAttentionEntry
from vtc.selectors.cls_attention import CLSAttention
from vtc.visual_tokens import in_grids

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_cls_attention_equals_fastervlm() -> None:
    golden = np.load(GOLDENS / "fastervlm.npz")
    for count, keeps in ((64, (8, 16, 32)), (576, (29, 58))):
        side = int(count**0.5)
        features = torch.from_numpy(golden[f"n{count}_patch_feats"])
        row = torch.from_numpy(golden[f"n{count}_cls_attn"]).mean(dim=1)
        for keep in keeps:
            selector = CLSAttention.build(ClsAttentionEntry(), LLAVA_15, range(23))
            (reading,) = selector.needs.readings
            chosen = selector.select(in_grids(features, ((side, side),), readings={reading: row}), keep)
            assert chosen[0].tolist() == golden[f"n{count}_k{keep}_idx"].tolist()


@pytest.mark.parametrize("start", [2, 4, 6])
def test_averaged_cls_attention_equals_vtc_cls(start: int) -> None:
    golden = np.load(GOLDENS / "vtc_cls.npz")
    selector = CLSAttention.build(ClsAttentionEntry(layers=tuple(range(start, 7))), LLAVA_15, range(23))
    rows = {
        reading: torch.from_numpy(golden["attn_all"][reading.layer])[:, :, 0, 1:].mean(dim=1)
        for reading in selector.needs.readings
    }
    assert len(rows) == 7 - start
    grid = in_grids(torch.from_numpy(golden["patch_feats"]), ((8, 8),), readings=rows)
    for keep in (8, 16, 32):
        chosen = selector.select(grid, keep)
        assert chosen[0].tolist() == golden[f"start{start}_k{keep}_idx"].tolist()
