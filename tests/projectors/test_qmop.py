"""The router of `qmop`: what training does to it, and what it looks at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.projectors.test_project import stage
from tests.tiny import recipe
from vtc.compressed.build import apply_recipe
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.projectors.qmop import Qmop
from vtc.recipe.projectors.qmop import QmopTraining
from vtc.visual_tokens import TextEmbeddings, VisualTokens, in_grids

GRID = (4, 4)


def mixture() -> Qmop:
    return Qmop(GRID, (2, 2), 16, 2, 8, 16, 8, 8)


def rate(projector: Qmop, *rates: float) -> None:
    """Have the router rate the branches so, whatever it sees."""
    last = projector.router[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor(rates)


def encoded(projector: Qmop) -> VisualTokens:
    torch.manual_seed(0)
    text = TextEmbeddings(torch.randn(3, 2, 8), torch.ones(3, 2, dtype=torch.long)) if projector.text else None
    return replace(in_grids(torch.randn(3, 16, 16), [GRID]), text=text)


def step(projector: Qmop, config: QmopTraining, progress: float) -> torch.Tensor:
    projector.train().prepare(config, progress)
    made = projector(encoded(projector), torch.nn.Identity())
    projector.eval()
    return made


def test_the_load_loss_works_against_leaving_out_the_same_branch() -> None:
    projector = mixture()
    rate(projector, 9.0, 1.0, 0.0)
    step(projector, QmopTraining(balance=0.5), 1.0)
    penalty = projector.penalty()
    assert penalty is not None
    # Two of three are taken, each half of the times, and all the probability is theirs.
    assert float(penalty.detach()) == pytest.approx(0.5 * 3 * 0.5, rel=1e-3)
    penalty.backward()
    gradient = projector.router[-1].bias.grad
    assert gradient is not None
    assert gradient[2] < 0 < gradient[0]  # a step rates the one that is left out higher


def test_branches_weigh_the_same_at_first_and_as_the_router_says_later() -> None:
    projector, config = mixture(), QmopTraining(equal_first=0.5)
    rate(projector, 9.0, 0.0, 0.0)
    made = projector.made(encoded(projector).features)
    torch.testing.assert_close(step(projector, config, 0.25), made.mean(dim=1))
    assert projector.penalty() is None
    torch.testing.assert_close(step(projector, config, 0.75), made[:, 0], atol=1e-3, rtol=0)
    projector.prepare(config, 0.25)  # what is said to training is nothing to whoever runs it
    torch.testing.assert_close(projector(encoded(projector), torch.nn.Identity()), made[:, 0], atol=1e-3, rtol=0)


def test_a_router_may_look_at_the_image_alone(adapter: VLMAdapter) -> None:
    one = stage("qmop")
    one["projector"]["question"] = False
    made, model = recipe(one), apply_recipe(adapter, recipe(one), from_state=True)
    assert not model.reads_text
    own = sum(parameter.numel() for parameter in model.vision.stages.parameters())
    assert plan(made, adapter.facts).stages[0].parameters == own
