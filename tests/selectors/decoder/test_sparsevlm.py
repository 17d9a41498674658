"""SparseVLM equals the authors' code, given their noise, and fits what it recycles into the budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.selectors.decoder.fakes import FakeAdapter, adapter, decoder_tokens, golden
from vtc.recipe.selectors.decoder.sparsevlm import SparseVLMEntry
from vtc.selectors.decoder.sparsevlm import SparseVLM, rater_weights, recycling_budget
from vtc.selectors.density_peaks import cluster

DEFAULT = SparseVLMEntry()


def make(entry: SparseVLMEntry = DEFAULT) -> tuple[SparseVLM, dict[str, torch.Tensor]]:
    data = golden("sparsevlm")
    return SparseVLM(entry, adapter(FakeAdapter({2: data["attn"]})), after=3, before=2), data


def test_raters_equal_the_original() -> None:
    data = golden("sparsevlm")
    image, text = data["hidden"][:, 6:70], data["hidden"][:, 70:]
    weights = rater_weights(image, text, torch.ones(1, 14))
    assert weights[0].nonzero().flatten().tolist() == data["rater_idx"].tolist()


@pytest.mark.parametrize(("case", "kept"), [("layer6", 30), ("layer15", 17)])
def test_kept_and_recycled_tokens_equal_the_original(case: str, kept: int) -> None:
    selector, data = make()
    tokens = decoder_tokens(data["hidden"], 6, 64)
    score = selector.score(tokens)
    assert torch.allclose(score, data["vis_scores"], atol=1e-7)
    expected = data[f"{case}_k{kept}_idx"]
    clusters = int(data[f"{case}_cluster_num"])
    source = data[f"{case}_recycle_src_idx"]
    indices, states = selector.merge(tokens, kept + clusters)
    assert set(expected.tolist()) < set(indices[0].tolist())
    assert set(indices[0].tolist()) - set(expected.tolist()) < set(source.tolist())
    is_kept = torch.isin(indices[0], expected)
    assert torch.equal(states[0, is_kept], data["hidden"][0, 6 + expected])
    assert recycling_budget(64, kept + clusters, 0.3) == (clusters, len(source))

    _, merged = cluster(data["hidden"][:, 6 + source], clusters, clusters, data[f"{case}_recycle_noise"] * 1e-6)
    assert torch.allclose(merged, data[f"{case}_recycled_out"], atol=1e-5)


def test_clusters_equal_the_original() -> None:
    data = golden("sparsevlm")
    _, merged = cluster(data["hidden"][:, 6:46], 5, 5, data["cluster40_noise"] * 1e-6)
    assert torch.allclose(merged, data["cluster40_k5_out"], atol=1e-5)


def test_without_recycling_states_stay_what_they_were() -> None:
    selector, data = make(SparseVLMEntry(recycle=0.0))
    indices, states = selector.merge(decoder_tokens(data["hidden"], 6, 64), 30)
    assert indices[0].tolist() == data["layer6_k30_idx"].tolist()
    assert torch.equal(states[0], data["hidden"][0, 6 + data["layer6_k30_idx"]])


@given(total=st.integers(1, 600), data=st.data(), share=st.floats(0, 1))
def test_recycled_tokens_fit_into_the_budget(total: int, data: st.DataObject, share: float) -> None:
    keep = data.draw(st.integers(1, total))
    clusters, candidates = recycling_budget(total, keep, share)
    assert 0 <= clusters <= keep // 2
    assert clusters <= candidates <= total - (keep - clusters)


def test_of_tokens_equally_dense_the_first_is_the_centre() -> None:
    pairs = torch.tensor([[[0.0, 0], [1, 0], [10, 0], [11, 0]]])
    centres, merged = cluster(pairs, 2, 2)
    assert sorted(centres[0].tolist()) == [0, 2]
    assert sorted(merged[0, :, 0].tolist()) == [0.5, 10.5]


def test_equal_tokens_still_make_as_many_clusters() -> None:
    centres, merged = cluster(torch.ones(1, 6, 3), 3, 3)
    assert centres.tolist() == [[0, 1, 2]]
    assert torch.equal(merged, torch.ones(1, 3, 3))
