"""Padding takes a place in the budget only where an image has fewer other tokens, whatever the selector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.selectors.inputs import NAMES, VIEWS, make, rows, tokens, views_of

RANKING = [name for name in (*NAMES, *VIEWS) if name != "pooling"]
"""Pooling has fixed cells, which all stay."""
GRID = (6, 6)


def padded(views: int) -> Tensor:
    """Of two images: bars above and below the first, none around the second."""
    mask = torch.zeros(2, views, *GRID, dtype=torch.bool)
    mask[0, :, 0] = mask[0, :, 4:] = True
    return mask.flatten(1)


@pytest.mark.parametrize("name", RANKING)
def test_padding_is_kept_only_where_nothing_else_is_left(name: str) -> None:
    views = views_of(name)
    padding = padded(views)
    batch = replace(tokens(2, GRID, 0, views), padding=padding)
    selector = make(name, GRID)
    real = int((~padding[0]).sum())
    for keep in (1, 7, real, real + 3, padding.shape[1]):
        kept = selector.prune(batch, keep)
        chosen = kept.indices
        assert chosen.shape == (2, keep)
        assert (chosen.diff(dim=1) > 0).all()
        assert int(padding[0][chosen[0]].sum()) == max(0, keep - real)
        assert kept.features.isfinite().all()
        assert kept.padding is not None
        assert torch.equal(kept.padding[0], padding[0][chosen[0]])


@pytest.mark.parametrize("name", RANKING)
def test_an_image_without_padding_keeps_what_it_kept(name: str) -> None:
    views = views_of(name)
    batch = tokens(2, GRID, 0, views)
    selector = make(name, GRID)
    for keep in (1, 9, 20):
        with_bars = selector.prune(replace(batch, padding=padded(views)), keep)
        alone = selector.prune(rows(batch, slice(1, 2)), keep)
        assert torch.equal(with_bars.indices[1], alone.indices[0])
        torch.testing.assert_close(with_bars.features[1], alone.features[0])


@pytest.mark.parametrize("name", ["tome", "turbo", "pooling"])
def test_padding_has_no_part_in_what_is_merged(name: str) -> None:
    padding = padded(1)
    batch = replace(tokens(2, GRID, 0), padding=padding)
    bright = replace(batch, features=torch.where(padding.unsqueeze(-1), 9.0, batch.features))
    for keep in (4, 18):
        kept, other = (make(name, GRID).prune(one, keep) for one in (batch, bright))
        assert kept.padding is not None
        real = (~kept.padding).unsqueeze(-1)
        torch.testing.assert_close(kept.features * real, other.features * real, atol=1e-3, rtol=1e-3)


def test_a_pooled_cell_is_padding_where_all_of_it_is() -> None:
    padding = torch.zeros(1, 4, 4, dtype=torch.bool)
    padding[:, :3] = True
    batch = replace(rows(tokens(2, (4, 4), 0), slice(0, 1)), padding=padding.flatten(1))
    kept = make("pooling", (4, 4)).prune(batch, 4)
    assert kept.padding is not None
    assert kept.padding.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(kept.features[0, 2], batch.features[0, 12:14].mean(dim=0))
