"""What rounding one layer's weight does to what the whole model says.

A layer's rounding adds to what the layer gives; for small additions, the KL divergence that this brings is half the
expected square of the change of the log probability of tokens drawn from the model itself (the Fisher information along
the addition). So one gradient for each prompt tells it for all layers at once, where trying each takes as many runs as
there are layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.precision.prompts import Prompt, answered, narrow, some_places
from exporters.precision.small import Small
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.progress import Report, silent


def divergences(
    models: Sequence[CompressedModel],
    weights: Mapping[str, Small],
    samples: Sequence[Sample],
    report: Report = silent,
) -> dict[str, float]:
    """Estimate the KL divergence of next-token distributions that each weight brings if it alone is rounded.

    Parameters
    ----------
    models : sequence of CompressedModel
        Of the same adapter, in float32.
    weights : mapping of module name to Small
        Of linear layers, outputs on axis 0.
    samples : sequence of Sample
        The model's own answers count too.
    report : callable

    Returns
    -------
    dict of module name to float
        In nats a token; 0 of what no sample reaches.
    """
    modules: dict[str, Any] = dict(models[0].adapter.model.named_modules())
    prompts = answered(models, samples)
    amounts = {name: torch.zeros((), requires_grad=True) for name in weights}
    total = dict.fromkeys(weights, 0.0)
    with ExitStack() as hooked:
        for name, small in weights.items():
            hooked.callback(modules[name].register_forward_hook(_Addition(small, amounts[name])).remove)
        for done, prompt in enumerate(prompts):
            report("weighing layers", done, len(prompts))
            for name, change in _changes(prompt, amounts, done).items():
                total[name] += change / len(prompts)
    report("weighing layers", len(prompts), len(prompts))
    return total


class _Addition:
    """Adds an amount, which is 0, of what rounding adds to a layer's output."""

    def __init__(self, small: Small, amount: Tensor) -> None:
        scales = torch.from_numpy(small.scales.astype(np.float32)).reshape(len(small.numbers), -1)
        self._numbers = torch.from_numpy(small.numbers.astype(np.int8)).view(*scales.shape, -1)
        self._scales, self._amount = scales, amount

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        weight: Any = layer.weight
        with torch.no_grad():
            off = (self._numbers * self._scales[..., None]).view_as(weight) - weight
            added = F.linear(args[0], off)
        return output + self._amount * added


def _changes(prompt: Prompt, amounts: Mapping[str, Tensor], seed: int) -> dict[str, float]:
    """Half the square of the change of a drawn token's log probability, mean over places."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    with narrow():
        states = prompt.states()
        scores = prompt.scores(states[:, some_places(states, rng)])
    drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
    # Changes at different places are uncorrelated, so the square of their sum is that of all.
    found = torch.autograd.grad(scores.gather(1, drawn).sum(), list(amounts.values()), allow_unused=True)
    return {
        name: 0.0 if change is None else float(change) ** 2 / (2 * len(scores))
        for name, change in zip(amounts, found, strict=True)
    }
