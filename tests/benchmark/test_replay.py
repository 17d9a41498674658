from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtc.benchmark.replay import Constants, replayed


def recording(run: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Callable[[], None], Any]:
    """Stands in for a CUDA graph: the same memory comes in and goes out, and Python is not asked again."""
    output = run(inputs)
    given = inputs[0]

    def repeat() -> None:
        output.copy_(given * 2)

    return repeat, output


def test_a_run_is_recorded_once_for_each_shape_and_replayed_with_the_new_values() -> None:
    runs: list[tuple[int, ...]] = []

    def double(values: torch.Tensor, _: None) -> torch.Tensor:
        runs.append(tuple(values.shape))
        return values * 2

    ask = replayed(double, recording, lambda values, _: values.shape[0] < 5)
    for values in (torch.ones(2), torch.full((2,), 3.0), torch.ones(4), torch.zeros(2)):
        assert torch.equal(ask(values, None), values * 2)
    assert runs == [(2,), (4,)]


def test_what_is_not_to_be_replayed_is_run() -> None:
    ask = replayed(lambda values: values + 1, recording, lambda values: False)
    assert torch.equal(ask(torch.ones(7)), torch.full((7,), 2.0))


def test_constants_of_a_run_are_handed_out_in_the_recording() -> None:
    def run() -> list[torch.Tensor]:
        return [torch.tensor([1, 2]), torch.tensor(3.0)]

    constants = Constants()
    with constants:
        made = run()
    constants.rewind()
    with constants:
        assert all(again is first for again, first in zip(run(), made, strict=True))
