"""CDPruner against the authors' choice, and where it is meant to differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.recipe.selectors.cdpruner import CDPrunerEntry
from vtc.selectors.cdpruner import CDPruner, mean_cosine, most_probable, scaled
from vtc.visual_tokens import TextEmbeddings, VisualTokens

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "cdpruner.npz")


def golden_choice(case: str, *, whole_batch: bool = False) -> torch.Tensor:
    name, _, keep = case.removesuffix("_idx").rpartition("_k")
    data = name.split("_")[0]
    features = torch.from_numpy(GOLDEN[f"{data}_feats"])
    if f"{data}_proj" in GOLDEN:
        features = features @ torch.from_numpy(GOLDEN[f"{data}_proj"])
    image = torch.from_numpy(GOLDEN[f"{data}_image_embeds"])
    text = torch.from_numpy(GOLDEN[f"{name}_text_embeds"]).expand(len(features), -1, -1)
    relevance = -mean_cosine(image, text, torch.ones(text.shape[:2]))
    return most_probable(features, scaled(relevance, whole_batch), int(keep))


@pytest.mark.parametrize("case", [key for key in GOLDEN if key.endswith("_idx") and key[:3] in ("n64", "n57")])
def test_equals_the_original(case: str) -> None:
    assert golden_choice(case)[0].sort().values.tolist() == GOLDEN[case].tolist()


def test_scaling_over_the_batch_equals_the_original() -> None:
    expected = GOLDEN["b2_k16_idx"].tolist()
    assert golden_choice("b2_k16_idx", whole_batch=True).sort(dim=1).values.tolist() == expected
    assert golden_choice("b2_k16_idx").sort(dim=1).values.tolist() != expected


def test_beyond_the_rank_of_the_kernel_the_budget_is_kept() -> None:
    """The features have 24 dimensions; the original breaks down after them, keeping 31 of 40."""
    chosen = golden_choice("rankdef_k40_idx")[0].tolist()
    assert len(set(chosen)) == 40
    assert set(chosen[:24]) <= set(GOLDEN["rankdef_k40_idx"].tolist())


def test_beyond_the_rank_relevance_decides() -> None:
    features = torch.eye(2)[[0, 1, 0, 1, 0, 1]].unsqueeze(0)
    relevance = torch.tensor([[0.9, 1.0, 0.2, 0.3, 0.6, 0.5]])
    assert most_probable(features, relevance, 5)[0].tolist() == [1, 0, 4, 5, 3]


def about(features: torch.Tensor, states: torch.Tensor, mask: list[int]) -> VisualTokens:
    places = torch.arange(features.shape[1])[None]
    text = TextEmbeddings(states, torch.tensor([mask]))
    return VisualTokens(features, places, (), projected=features, text=text)


def test_padding_of_the_text_counts_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    features, states = torch.randn(1, 30, 8, generator=generator), torch.randn(1, 5, 8, generator=generator)
    short = CDPruner(CDPrunerEntry()).select(about(features, states[:, :3], [1, 1, 1]), 6)
    assert torch.equal(CDPruner(CDPrunerEntry()).select(about(features, states, [1, 1, 1, 0, 0]), 6), short)


def test_without_text_diversity_alone_decides() -> None:
    features = torch.eye(4)[[0, 0, 1, 1, 2, 3, 3]].unsqueeze(0)
    assert CDPruner(CDPrunerEntry()).select(about(features, torch.ones(1, 2, 4), [0, 0]), 4)[0].tolist() == [0, 2, 4, 5]


def test_the_sign_says_which_tokens_are_relevant() -> None:
    features = torch.tensor([[[1.0, 0.1], [0.1, 1.0]]])
    tokens = about(features, torch.tensor([[[1.0, 0.0]]]), [1])
    assert CDPruner(CDPrunerEntry()).select(tokens, 1).tolist() == [[0]]
    assert CDPruner(CDPrunerEntry(relevance="negative_cosine")).select(tokens, 1).tolist() == [[1]]
