"""Rounding by samples keeps what a layer gives closer than rounding each weight does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exporters.precision.gptq import gptq, output_error
from exporters.precision.scales import Grid, block_scales


def layer(outputs: int, inputs: int, dead: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the products of inputs that go together, some of them always zero."""
    torch.manual_seed(0)
    states = torch.randn(400, inputs // 4) @ torch.randn(inputs // 4, inputs) + 0.3 * torch.randn(400, inputs)
    states[:, :dead] = 0
    return torch.randn(outputs, inputs) / inputs**0.5, states.T @ states


def values(numbers: Tensor, scales: Tensor, block: int) -> Tensor:
    return numbers * scales.repeat_interleave(block, dim=1)


def nearest(weight: Tensor, grid: Grid) -> Tensor:
    wide = block_scales(weight, grid).repeat_interleave(grid.block, dim=1)
    return (weight / wide).round().clamp(grid.lowest, grid.largest) * wide


@pytest.mark.parametrize(("block", "largest"), [(32, 7), (96, 7), (32, 127)])
@pytest.mark.parametrize("dead", [0, 33])
def test_output_is_closer_than_with_nearest_numbers(block: int, largest: float, dead: int) -> None:
    weight, product = layer(48, 288, dead)
    grid = Grid(block, largest, 1e-9, torch.float32)
    before = weight.clone(), product.clone()
    numbers, scales = gptq(weight, product, grid)
    assert torch.equal(weight, before[0])
    assert torch.equal(product, before[1])
    assert numbers.shape == (48, 288)
    assert scales.shape == (48, 288 // block)
    assert (scales > 0).all()
    assert torch.equal(numbers, numbers.round())
    assert numbers.abs().max() <= largest
    ours = output_error(weight, values(numbers, scales, block), product)
    assert 0 < ours < 0.6 * output_error(weight, nearest(weight, grid), product)
    again = gptq(weight, product, grid)
    assert torch.equal(again[0], numbers)
    assert torch.equal(again[1], scales)


def test_scales_of_either_sign_make_use_of_the_lowest_number() -> None:
    weight, product = layer(48, 288)
    plain, signed = (Grid(32, 7, 1e-9, torch.float32, either) for either in (False, True))
    numbers, scales = gptq(weight, product, signed)
    assert numbers.min() == -8
    assert numbers.max() == 7
    assert (scales < 0).any()
    assert (scales > 0).any()
    before = gptq(weight, product, plain)
    errors = [output_error(weight, values(*found, 32), product) for found in (before, (numbers, scales))]
    assert errors[1] < 0.9 * errors[0]
    off = [float((nearest(weight, grid) - weight).square().sum()) for grid in (plain, signed)]
    assert off[1] < 0.9 * off[0]


def test_a_block_s_largest_weights_of_both_signs_are_not_clipped_where_that_is_worse() -> None:
    weight = torch.tensor([[7.0, -7.0] * 8])
    assert torch.equal(nearest(weight, Grid(16, 7, 1e-9, torch.float32, True)), weight)


def test_inputs_that_are_always_zero_become_their_nearest_numbers() -> None:
    weight, product = layer(16, 64, dead=32)
    grid = Grid(32, 7, 1e-9, torch.float32)
    numbers, scales = gptq(weight, product, grid)
    torch.testing.assert_close(values(numbers, scales, 32)[:, :32], nearest(weight, grid)[:, :32])


def test_scales_are_of_the_type_that_they_are_stored_in() -> None:
    weight, product = layer(8, 64)
    _, scales = gptq(weight, product, Grid(32, 7, 2.0**-20, torch.float16))
    assert torch.equal(scales, scales.half().float())


def test_one_sample_is_enough_to_go_by() -> None:
    torch.manual_seed(0)
    weight, one = torch.randn(8, 64), torch.randn(1, 64)
    product = one.T @ one  # of rank 1
    grid = Grid(32, 7, 1e-9, torch.float32)
    numbers, scales = gptq(weight, product, grid)
    assert output_error(weight, values(numbers, scales, 32), product) < 1e-3


def test_weights_of_nothing() -> None:
    _, product = layer(8, 64)
    numbers, scales = gptq(torch.zeros(8, 64), product, Grid(32, 7, 1e-9, torch.float32))
    assert not numbers.any()
    assert (scales > 0).all()
    assert output_error(torch.zeros(8, 64), numbers, product) == 0
