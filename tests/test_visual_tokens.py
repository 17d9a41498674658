"""Visual tokens: what follows the tokens that are kept, and the question as one vector."""

from __future__ import annotations

import torch

from vtc.recipe.needs import Reading
from vtc.visual_tokens import TextEmbeddings, in_grids


def test_the_question_as_one_vector_is_the_mean_over_its_real_tokens() -> None:
    states = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    mean = TextEmbeddings(states, mask).mean
    torch.testing.assert_close(mean, torch.stack([states[0, 2:].mean(dim=0), states[1].mean(dim=0)]))


def test_no_question_is_zeros() -> None:
    mean = TextEmbeddings(torch.ones(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)).mean
    assert torch.equal(mean, torch.zeros(2, 3))
    assert torch.equal(TextEmbeddings(torch.ones(2, 0, 3), torch.ones(2, 0, dtype=torch.long)).mean, torch.zeros(2, 3))


def test_the_question_is_averaged_in_full_precision() -> None:
    states = torch.full((1, 3000, 2), 60.0, dtype=torch.float16)
    mean = TextEmbeddings(states, torch.ones(1, 3000, dtype=torch.long)).mean
    assert mean.dtype == torch.float32
    assert mean.tolist() == [[60.0, 60.0]]


def test_hidden_states_follow_the_kept_tokens_and_the_state_of_the_cls_token_stays() -> None:
    states, image = torch.randn(2, 6, 4), torch.randn(2, 6)
    hidden, summary = Reading("hidden_states", 1), Reading("cls_state", 1)
    tokens = in_grids(torch.randn(2, 6, 3), ((2, 3),), readings={hidden: states, summary: image})
    chosen = torch.tensor([[0, 5], [2, 3]])
    kept = tokens.keep(chosen)
    for row in range(2):
        assert torch.equal(kept.readings[hidden][row], states[row][chosen[row]])
    assert torch.equal(kept.readings[summary], image)
