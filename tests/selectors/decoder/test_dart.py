"""DART equals the authors' code, order of turns included, and keeps exactly what the budget says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.selectors.decoder.fakes import FakeAdapter, adapter, decoder_tokens, golden
from vtc.recipe.selectors.decoder.dart import DARTEntry
from vtc.selectors.decoder.base import DecoderTokens
from vtc.selectors.decoder.dart import DART, take_turns


def make(*, as_published: bool = False) -> tuple[DART, DecoderTokens, dict[str, Tensor]]:
    data = golden("dart")
    fake = FakeAdapter(keys={1: data["k_states"].transpose(1, 2)})
    tokens = decoder_tokens(data["last_layer_state"], int(data["image_start"]), int(data["n_img"]))
    return DART(DARTEntry(as_published=as_published), adapter(fake), after=2, before=1), tokens, data


CASES = ["llava_trunc8", "llava_trunc16", "llava_trunc32", "qwen_red0.5", "qwen_red0.75", "qwen_red0.875"]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_original(case: str) -> None:
    selector, tokens, data = make(as_published=True)
    expected = data[f"{case}_idx"]
    assert torch.equal(selector.select(tokens, len(expected))[0], expected)


@pytest.mark.parametrize("case", CASES)
def test_turns_in_the_original_order_give_the_original_choice(case: str) -> None:
    _, tokens, data = make()
    order, expected = data["pivot_abs_idx_in_iteration_order"], data[f"{case}_idx"]
    unit = torch.nn.functional.normalize(tokens.hidden, dim=-1)
    image_pivots = order[(order >= 5) & (order < 69)] - 5
    chosen = take_turns(unit[:, order] @ unit[:, 5:69].transpose(1, 2), image_pivots[None], len(expected) - 4)
    assert torch.equal(chosen[0].sort().values, expected)


@pytest.mark.parametrize("keep", [1, 3, 4, 5, 11, 13, 63, 64])
def test_keeps_exactly_the_budget(keep: int) -> None:
    selector, tokens, _ = make()
    chosen = selector.select(tokens, keep)[0]
    assert chosen.shape == (keep,)
    assert (chosen.diff() > 0).all()


def test_a_short_question_chooses_alike_whatever_it_is_padded_to() -> None:
    selector, tokens, _ = make()
    short = replace(tokens, queries=tokens.queries[:, -2:], query_mask=tokens.query_mask[:, -2:])
    mask = torch.zeros_like(tokens.query_mask)
    mask[:, -2:] = 1
    padded = replace(tokens, queries=tokens.queries * mask, query_mask=mask)
    assert torch.equal(selector.select(short, 20), selector.select(padded, 20))
