"""FastV equals the authors' code, and looks at the layer before the cut."""

from __future__ import annotations

import pytest
import torch

from tests.selectors.decoder.fakes import FakeAdapter, adapter, decoder_tokens, golden
from vtc.recipe.selectors.decoder.fastv import FastVEntry
from vtc.selectors.decoder.fastv import FastV


@pytest.mark.parametrize("removed", ["0.5", "0.75", "0.9"])
def test_equals_the_original(removed: str) -> None:
    data = golden("fastv")
    selector = FastV(FastVEntry(), adapter(FakeAdapter({1: data["n64_attn"]})), after=2, before=1)
    tokens = decoder_tokens(torch.zeros(1, 80, 4), int(data["n64_sys_len"]), 64)
    expected = data[f"n64_r{removed}_img_idx"]
    assert torch.allclose(selector.score(tokens)[0], data["n64_scores"])
    assert torch.equal(selector.select(tokens, len(expected))[0], expected)


def test_reads_the_layer_before_the_cut_whose_input_it_needs() -> None:
    fake = FakeAdapter({1: torch.rand(1, 2, 12, 12)})
    FastV(FastVEntry(), adapter(fake), after=2, before=1).select(decoder_tokens(torch.zeros(1, 12, 4), 2, 8), 3)
    assert FastVEntry.reads_before
    assert fake.query_tokens == [(1, True)]
