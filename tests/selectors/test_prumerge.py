"""PruMerge: numbers of the authors' code, and blends that are means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selectors.inputs import FACTS, RUNNING, noted
from vtc.recipe.selectors.prumerge import PruMergeEntry
from vtc.selectors.base import kept_mask
from vtc.selectors.prumerge import PruMerge, blend, rest
from vtc.visual_tokens import VisualTokens, in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "prumerge.npz")
READS = PruMergeEntry().readings(FACTS, RUNNING)


def image(count: int) -> VisualTokens:
    side = int(count**0.5)
    read = {key: torch.from_numpy(GOLDEN[f"n{count}_{key}"]) for key in ("q", "k", "patch_feats")}
    scores = torch.matmul(read["q"][:, :1], read["k"].transpose(1, 2)) * read["k"].shape[-1] ** -0.5
    attention = torch.softmax(scores, dim=-1)[:, 0, 1:]
    np.testing.assert_allclose(attention, GOLDEN[f"n{count}_cls_attn"], rtol=1e-5)
    readings = noted(READS, attention=attention, keys=read["k"][:, 1:])
    return in_grids(read["patch_feats"], ((side, side),), readings=readings)


@pytest.mark.parametrize(
    "case", ["n64_adaptive", "n64_ratio0.125", "n64_ratio0.25", "n576_adaptive", "n576_ratio0.125"]
)
def test_equals_the_authors_numbers(case: str) -> None:
    kept = GOLDEN[f"{case}_topk_idx"][0].tolist()
    expected = torch.from_numpy(GOLDEN[f"{case}_out"])
    tokens = image(int(case[1:].split("_")[0]))
    indices, features = PruMerge(PruMergeEntry(as_published=True), READS).merge(tokens, len(kept) + 1)
    (extra,) = set(indices[0].tolist()) - set(kept)
    attention = tokens.readings[READS["attention"]][0]
    assert attention[extra] <= attention[kept].min()
    torch.testing.assert_close(features, expected[:, np.argsort([*kept, extra])])


@pytest.mark.parametrize("count", [64, 576])
def test_blends_what_the_authors_adaptive_plus_form_keeps_alike(count: int) -> None:
    kept = torch.from_numpy(GOLDEN[f"n{count}_plus_idx"]).unsqueeze(0)
    tokens = image(count)
    attention = tokens.readings[READS["attention"]]
    blended = blend(tokens.features, tokens.readings[READS["keys"]], attention, kept, as_published=True)
    extra = rest(tokens.features, attention * (1 - kept_mask(kept, count)), as_published=True)
    expected = torch.from_numpy(GOLDEN[f"n{count}_plus_out"])
    torch.testing.assert_close(torch.cat([blended, extra], dim=1), expected)


@pytest.mark.parametrize("count", [64, 576])
def test_plus_equals_the_authors_numbers_at_their_budget(count: int) -> None:
    kept = GOLDEN[f"n{count}_plus_idx"].tolist()
    outliers = round(float(GOLDEN[f"n{count}_outlier_ratio"]) * count)
    plus = PruMerge(PruMergeEntry(spatial=True, as_published=True, important=outliers / len(kept)), READS)
    tokens = image(count)
    assert plus.choose(tokens.readings[READS["attention"]], len(kept))[0].tolist() == kept
    indices, features = plus.merge(tokens, len(kept) + 1)
    (extra,) = set(indices[0].tolist()) - set(kept)
    expected = torch.from_numpy(GOLDEN[f"n{count}_plus_out"])
    torch.testing.assert_close(features, expected[:, np.argsort([*kept, extra])])


def test_plus_spends_a_quarter_by_attention_and_spreads_the_rest() -> None:
    tokens = image(576)
    attention = tokens.readings[READS["attention"]]
    kept = PruMerge(PruMergeEntry(spatial=True), READS).choose(attention, 64)[0]
    assert kept[:16].tolist() == attention[0].topk(16).indices.tolist()
    assert len(set(kept.tolist())) == 64
    gaps = kept[16:].diff()
    assert int(gaps.min()) >= 11
    assert int(gaps.max()) <= 16


def test_blends_are_weighted_means() -> None:
    tokens = image(64)
    constant = replace(tokens, features=torch.full((1, 64, 32), 3.0))
    _, features = PruMerge(PruMergeEntry(), READS).merge(constant, 9)
    torch.testing.assert_close(features, torch.full((1, 9, 32), 3.0))


def test_tokens_without_any_attention_still_have_a_mean() -> None:
    tokens = image(64)
    readings = {**tokens.readings, **noted(READS, attention=torch.zeros(1, 64))}
    _, features = PruMerge(PruMergeEntry(), READS).merge(replace(tokens, readings=readings), 9)
    torch.testing.assert_close(features[:, 8], tokens.features[:, 8:].mean(dim=1))
