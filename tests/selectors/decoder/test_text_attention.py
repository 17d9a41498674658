"""Text attention: who asks, and in which layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.selectors.decoder.fakes import FakeAdapter, adapter, decoder_tokens
from vtc.recipe.selectors.decoder.text_attention import TextAttentionEntry
from vtc.selectors.decoder.text_attention import TextAttention


def test_is_the_mean_over_the_text_that_asks() -> None:
    maps = torch.rand(2, 3, 12, 12)
    tokens = decoder_tokens(torch.zeros(2, 12, 4), 2, 6)
    tokens = replace(tokens, query_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]))
    score = TextAttention(TextAttentionEntry(), adapter(FakeAdapter({4: maps})), after=4, before=3).score(tokens)
    rows = maps.mean(dim=1)[:, 8:, 2:8]
    assert torch.allclose(score[0], rows[0].mean(dim=0))
    assert torch.allclose(score[1], rows[1, 2:].mean(dim=0))


def test_raters_are_the_text_that_resembles_the_image() -> None:
    maps = torch.rand(1, 3, 12, 12)
    hidden = torch.zeros(1, 12, 4)
    hidden[0, 2:8] = torch.tensor([1.0, 0, 0, 0])
    hidden[0, 2:8, 3] = torch.arange(6.0)
    hidden[0, 9] = torch.tensor([2.0, 0, 0, 0])
    fake = FakeAdapter({4: maps})
    entry = TextAttentionEntry(queries="raters", rope=False)
    score = TextAttention(entry, adapter(fake), after=4, before=3).score(decoder_tokens(hidden, 2, 6))
    assert torch.allclose(score[0], maps.mean(dim=1)[0, 9, 2:8])
    assert fake.query_tokens == [(4, False)]
