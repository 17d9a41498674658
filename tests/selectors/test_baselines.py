"""Choices that do not look at the image."""

from __future__ import annotations

import torch

from tests.selectors.inputs import tokens
from vtc.recipe.selectors.random import RandomEntry
from vtc.recipe.selectors.uniform import UniformEntry
from vtc.selectors.random import Random
from vtc.selectors.uniform import Uniform


def test_uniform_is_spread_evenly() -> None:
    assert Uniform(UniformEntry()).select(tokens(1, (4, 4)), 4)[0].tolist() == [2, 6, 10, 14]


def test_random_depends_on_the_seed_alone() -> None:
    first = Random(RandomEntry(seed=1)).select(tokens(1, (8, 8), seed=0), 10)
    assert torch.equal(first, Random(RandomEntry(seed=1)).select(tokens(1, (8, 8), seed=9), 10))
    assert not torch.equal(first, Random(RandomEntry(seed=2)).select(tokens(1, (8, 8)), 10))
