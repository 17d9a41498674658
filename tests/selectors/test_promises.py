"""What every selector before the decoder promises, whatever the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exporters.graph_spec import GraphSpec
from exporters.lint import lint
from exporters.writing import export_graph
from tests.selectors.inputs import NAMES, VIEWS, make, mapped, rows, tokens, views_of
from vtc.facts.layout import Grid
from vtc.recipe.needs import Reading
from vtc.selectors.base import Selector
from vtc.visual_tokens import TextEmbeddings, VisualTokens

ALL = [*NAMES, *VIEWS]
GRIDS: list[Grid] = [(8, 8), (24, 24), (3, 7)]
LARGEST = 96
"""Budget up to which greedy selectors are tried on the large grid; each token costs them a step."""


def check(kept: VisualTokens, chosen: Tensor, count: int, keep: int) -> None:
    """Exactly `keep` ascending places, and as many tokens in every space."""
    assert chosen.shape == (len(chosen), keep)
    assert chosen.dtype == torch.int64
    assert (chosen.diff(dim=1) > 0).all()
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < count
    assert kept.features.shape[1] == keep
    assert torch.equal(kept.indices, chosen)
    assert kept.features.isfinite().all()
    assert kept.projected is None or (kept.projected.shape[1] == keep and bool(kept.projected.isfinite().all()))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), grid=st.sampled_from(GRIDS), seed=st.integers(0, 5))
def test_keeps_exactly_the_budget_in_raster_order(name: str, data: st.DataObject, grid: Grid, seed: int) -> None:
    given_tokens = tokens(2, grid, seed, views_of(name))
    count = given_tokens.features.shape[1]
    keep = data.draw(st.integers(1, min(count, LARGEST)) | st.sampled_from([count - 1, count]))
    selector = make(name, grid)
    check(selector.prune(given_tokens, keep), selector.select(given_tokens, keep), count, keep)


@pytest.mark.parametrize("name", ALL)
def test_every_budget_of_a_grid_that_is_not_square(name: str) -> None:
    given_tokens = tokens(2, (3, 5), 0, views_of(name))
    count = given_tokens.features.shape[1]
    for keep in range(1, count + 1):
        selector = make(name, (3, 5))
        check(selector.prune(given_tokens, keep), selector.select(given_tokens, keep), count, keep)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_images_without_any_difference_still_keep_the_budget(name: str, value: float) -> None:
    same = mapped(tokens(2, (4, 6), 0, views_of(name)), lambda tensor: torch.full_like(tensor, value))
    count = same.features.shape[1]
    for keep in (1, 5, 11, count):
        selector = make(name, (4, 6))
        chosen = selector.select(same, keep)
        check(selector.prune(same, keep), chosen, count, keep)
        assert torch.equal(chosen[0], chosen[1])


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_lost_their_grid_are_chosen_from_as_well(name: str) -> None:
    pruned = tokens(2, (5, 5)).keep(torch.arange(0, 25, 2).expand(2, -1))
    selector = make(name, (5, 5))
    kept = selector.prune(pruned, 4)
    assert kept.indices.shape == (2, 4)
    assert (kept.indices % 2 == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_chosen_from_as_its_images_alone(name: str) -> None:
    batch = tokens(3, (6, 6), 0, views_of(name))
    selector = make(name, (6, 6))
    together = selector.prune(batch, 10)
    for row in range(3):
        alone = selector.prune(rows(batch, slice(row, row + 1)), 10)
        assert torch.equal(alone.indices[0], together.indices[row])
        torch.testing.assert_close(alone.features[0], together.features[row])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_works_in_half_precision(name: str, dtype: torch.dtype) -> None:
    half = mapped(tokens(2, (6, 6), 0, views_of(name)), lambda tensor: tensor.to(dtype))
    kept = make(name, (6, 6)).to(dtype).prune(half, 7)
    assert kept.features.dtype == dtype
    check(kept, kept.indices, half.features.shape[1], 7)


# Export -------------------------------------------------------------------------------------------------------------

EXPORT_GRID = (8, 8)
EXPORT_KEEP = 16
MOST_NODES = 3000 * EXPORT_KEEP // 64
"""A greedy choice has the same operators for each token; at 64 of them a graph is to stay below 3,000."""
IMAGES = 50


class Graph(nn.Module):
    """A selector that takes its readings, features, projected tokens and question one after the other."""

    def __init__(self, selector: Selector[Any]) -> None:
        super().__init__()
        self.selector = selector
        self.readings: list[Reading] = sorted(selector.needs.readings)

    def flat(self, given_tokens: VisualTokens) -> tuple[Tensor, ...]:
        """The tensors that the selector needs."""
        assert given_tokens.projected is not None
        assert given_tokens.text is not None
        needs = self.selector.needs
        return (
            given_tokens.features,
            *(given_tokens.readings[reading] for reading in self.readings),
            *([given_tokens.projected] if needs.projected else []),
            *([given_tokens.text.states, given_tokens.text.mask] if needs.text else []),
        )

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        features, *others = values
        needs = self.selector.needs
        count = len(self.readings)
        kept = self.selector.prune(
            VisualTokens(
                features=features,
                indices=torch.arange(features.shape[1]).expand(features.shape[0], -1),
                grids=(EXPORT_GRID,),
                readings=dict(zip(self.readings, others[:count], strict=True)),
                projected=others[count] if needs.projected else None,
                text=TextEmbeddings(others[-2], others[-1]) if needs.text else None,
            ),
            EXPORT_KEEP,
        )
        return (kept.features if kept.projected is None else kept.projected), kept.indices


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name != "cdpruner, negative"])
def test_exported_graph_chooses_as_pytorch_does(name: str, tmp_path: Any) -> None:
    views = views_of(name)
    grid = (EXPORT_GRID[0], EXPORT_GRID[1] // 4) if views > 1 else EXPORT_GRID
    given_tokens = tokens(IMAGES, grid, 3, views)
    module = Graph(make(name, grid))
    args = module.flat(given_tokens)
    names = [f"input_{number}" for number in range(len(args))]
    spec = GraphSpec("selector", module, args, names, ["features", "indices"], (tuple({0: "batch"} for _ in args),))
    path = tmp_path / "selector.onnx"
    export_graph(spec, path)
    assert lint(path, constant_tokens=True) == []
    assert len(onnx.load(path).graph.node) < MOST_NODES
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {value.name: args[names.index(value.name)].numpy() for value in session.get_inputs()}
    features, indices = session.run(None, feeds)
    expected, chosen = module(*args)
    np.testing.assert_array_equal(indices, chosen.numpy())
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-4)
