"""FEATHER: no rotary positions in the score, and tokens spread evenly beside the best scored."""

from __future__ import annotations

import pytest
import torch

from tests.selectors.decoder.fakes import FakeAdapter, LinearAdapter, adapter, decoder_tokens
from vtc.recipe.selectors.decoder.feather import FeatherEntry
from vtc.selectors.decoder.base import DecoderTokens
from vtc.selectors.decoder.feather import FEATHER


@pytest.fixture
def setting() -> tuple[FakeAdapter, DecoderTokens]:
    row = torch.zeros(1, 1, 20, 20)
    row[0, 0, -1, 2:18] = torch.linspace(0, 1, 16)
    return FakeAdapter({7: row}), decoder_tokens(torch.arange(80.0).view(1, 20, 4), 2, 16)


def test_asks_without_rotary_positions(setting: tuple[FakeAdapter, DecoderTokens]) -> None:
    fake, tokens = setting
    FEATHER(FeatherEntry(), adapter(fake), after=8, before=7).select(tokens, 4)
    assert fake.query_tokens == [(7, False)]


def test_attention_is_shared_among_the_visual_tokens_alone() -> None:
    torch.manual_seed(0)
    fake = LinearAdapter(torch.randn(8, 8), torch.randn(8, 8), heads=2)
    tokens = decoder_tokens(torch.randn(2, 20, 8), 2, 16)
    score = FEATHER(FeatherEntry(), adapter(fake), after=8, before=7).score(tokens)
    assert torch.allclose(score.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [(0.0, [10, 11, 12, 13, 14, 15]), (0.5, [2, 8, 12, 13, 14, 15]), (1.0, [1, 4, 6, 9, 12, 14])],
)
def test_a_share_of_the_budget_is_spread_evenly(
    setting: tuple[FakeAdapter, DecoderTokens], uniform: float, expected: list[int]
) -> None:
    fake, tokens = setting
    selector = FEATHER(FeatherEntry(uniform=uniform), adapter(fake), after=8, before=7)
    assert selector.select(tokens, 6)[0].tolist() == expected
