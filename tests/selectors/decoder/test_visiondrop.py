"""VisionDrop equals the authors' code, and its contextual tokens keep the norm that the model knows."""

from __future__ import annotations

import pytest
import torch

from tests.selectors.decoder.fakes import LinearAdapter, adapter, decoder_tokens, golden
from vtc.recipe.selectors.decoder.visiondrop import VisionDropEntry
from vtc.selectors.contextual import contextual_merge
from vtc.selectors.decoder.visiondrop import VisionDrop


@pytest.mark.parametrize(("dominant", "contextual"), [(30, 5), (14, 2), (7, 1)])
def test_equals_the_original(dominant: int, contextual: int) -> None:
    data = golden("visiondrop")
    fake = LinearAdapter(data["wq"], data["wk"], int(data["heads"]))
    tokens = decoder_tokens(data["hidden"], int(data["sys_len"]), int(data["n_img"]))
    selector = VisionDrop(VisionDropEntry(as_published=True), adapter(fake), after=8, before=7)
    indices, states = selector.merge(tokens, dominant + contextual)
    expected = data[f"d{dominant}_c{contextual}_dominant_idx"]
    is_dominant = torch.isin(indices[0], expected)
    assert torch.equal(indices[0, is_dominant], expected)
    ordered = torch.cat([states[0, is_dominant], states[0, ~is_dominant]])
    assert torch.allclose(ordered, data[f"d{dominant}_c{contextual}_out"], atol=1e-5)
    assert set(fake.query_tokens) == {(8, True)}


def test_a_contextual_token_is_the_mean_of_its_group() -> None:
    features = torch.tensor([[[1.0, 0], [0, 1], [3, 0], [0, 2], [9, 9]]])
    targets, merged = contextual_merge(features, features, torch.tensor([[4]]), 2)
    assert targets.tolist() == [[0, 2]]
    # The second token is as dissimilar to both targets, and goes to the first one.
    assert torch.allclose(merged, torch.tensor([[[1 / 3, 1], [3, 0]]]))
    _, published = contextual_merge(features, features, torch.tensor([[4]]), 2, published=True)
    assert torch.allclose(published, torch.tensor([[[1, 1.5], [3, 0]]]))
