"""PyramidDrop equals the authors' code, and looks at the layer after the cut."""

from __future__ import annotations

import pytest
import torch

from tests.selectors.decoder.fakes import LinearAdapter, adapter, decoder_tokens, golden
from vtc.recipe.selectors.decoder.pyramiddrop import PyramidDropEntry
from vtc.selectors.decoder.pyramiddrop import PyramidDrop


@pytest.mark.parametrize("kept", ["0.5", "0.25", "0.125"])
def test_equals_the_original(kept: str) -> None:
    data = golden("pyramiddrop")
    fake = LinearAdapter(data["wq"], data["wk"], int(data["heads"]))
    tokens = decoder_tokens(data["hidden"], int(data["sys_len"]), int(data["n_img"]))
    expected = data[f"r{kept}_img_idx"]
    selector = PyramidDrop(PyramidDropEntry(), adapter(fake), after=8, before=7)
    assert torch.allclose(selector.score(tokens)[0], data["scores_last_token"], atol=1e-7)
    assert torch.equal(selector.select(tokens, len(expected))[0], expected)
    assert set(fake.query_tokens) == {(8, True)}
    assert not PyramidDropEntry.reads_before
