"""Scales of weights in few bits that are learned: the quantised model is to say what the model itself says.

Rounding by samples (:mod:`exporters.precision.gptq`) keeps what each layer gives; what errors of many layers come to at
the end it does not see. Here the numbers stay, and scales follow the gradient of the KL divergence of next-token
distributions, as in the second phase of EfficientQAT (Chen et al. 2024, arXiv 2407.11062).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from exporters.precision.prompts import Prompt, answered, narrow, some_places
from exporters.precision.weights import Chosen
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.training.learning_rate import learning_rate_factor

RATE = 3e-4
"""Peak learning rate of the factors that scales are multiplied by."""
AT_ONCE = 2
"""Prompts of a step."""
HELD_OUT = 0.125
"""Share of the prompts that are not learned from, which tell whether learning helped."""


@dataclass(frozen=True)
class Tuning:
    """What came of it.

    Attributes
    ----------
    steps : int
    before, after : float
        Mean KL divergence in nats of a token, on prompts that were not learned from.
    """

    steps: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether what was learned is better than what was there."""
        return self.after < self.before


def tuned(
    models: Sequence[CompressedModel],
    chosen: Mapping[str, Chosen],
    samples: Sequence[Sample],
    steps: int,
    report: Report = silent,
) -> tuple[dict[str, Chosen], Tuning]:
    """Learn the scales of the decoder's linear layers and its head; experts stay as they are, whole while it learns.

    Parameters
    ----------
    models : sequence of CompressedModel
        Of the same adapter, in float32; they come out as they went in.
    chosen : mapping of name to Chosen
        What all quantised weights are stored as.
    samples : sequence of Sample
        The model's own answers are learned from too.
    steps : int
    report : callable

    Returns
    -------
    dict of module name to Chosen
        The same numbers with other scales; as they were where that is no better on prompts that are held out.
    Tuning

    Raises
    ------
    InputError
        If there are not two samples.
    """
    if len(samples) < 2:
        raise InputError("scales are tuned on some prompts and judged by others; give --data with two at least")
    adapter = models[0].adapter
    layers = chosen.keys() & dict(adapter.model.named_modules()).keys()
    prompts = answered(models, samples)
    apart = max(1, round(HELD_OUT * len(prompts)))
    judged, learned = prompts[:apart], prompts[apart:]
    with _stored(adapter, {name: one for name, one in chosen.items() if name in layers}) as weights:
        before = _divergence(weights, judged)
        _learn(weights, learned, steps, report)
        result = Tuning(steps, before, _divergence(weights, judged))
        if not result.kept:
            return dict(chosen), result
        return dict(chosen) | weights.scaled(chosen), result


class _Stored(nn.Module):
    """A weight as it is stored, in place of the model's own while `on`."""

    numbers: Tensor
    scales: Tensor

    def __init__(self, one: Chosen, learned: bool) -> None:
        super().__init__()
        numbers = torch.from_numpy(one.small.numbers.astype(np.int8))
        scales = torch.from_numpy(one.small.scales.astype(np.float32)).reshape(len(numbers), -1)
        self.register_buffer("numbers", numbers.view(*scales.shape, -1))
        self.register_buffer("scales", scales)
        self.factors = nn.Parameter(torch.ones_like(scales), requires_grad=learned)
        self.on = True

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (outputs, inputs)."""
        if not self.on:
            return weight
        values: Tensor = _Dequantize.apply(self.numbers, self.scales * self.factors)  # type: ignore[no-untyped-call]
        return values.view_as(weight)


class _Dequantize(torch.autograd.Function):
    """Numbers (O, blocks, block) times scales (O, blocks). Only whole numbers are kept for the gradient."""

    @staticmethod
    def forward(context: Any, numbers: Tensor, scales: Tensor) -> Tensor:
        context.save_for_backward(numbers)
        return numbers * scales[..., None]

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (numbers,) = context.saved_tensors
        return None, (gradients[0] * numbers).sum(dim=-1)


class _Weights:
    """All weights of a model that are stored in few bits."""

    def __init__(self, stored: Mapping[str, _Stored]) -> None:
        self._stored = stored
        own = {id(one): one for one in stored.values()}.values()
        self.factors = [one.factors for one in own if one.factors.requires_grad]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Meanwhile, the model has its own."""
        for one in self._stored.values():
            one.on = False
        try:
            yield
        finally:
            for one in self._stored.values():
                one.on = True

    def scaled(self, chosen: Mapping[str, Chosen]) -> dict[str, Chosen]:
        """What was learned, in the type that scales are stored in."""
        found = {}
        for name, one in self._stored.items():
            if one.factors.requires_grad:
                small = chosen[name].small
                scales = (one.scales * one.factors.detach()).numpy().reshape(small.scales.shape)
                found[name] = replace(chosen[name], small=replace(small, scales=scales.astype(small.scales.dtype)))
        return found


@contextmanager
def _stored(adapter: VLMAdapter, chosen: Mapping[str, Chosen]) -> Iterator[_Weights]:
    """Meanwhile, modules have the weights that are stored."""
    modules: dict[str, Any] = dict(adapter.model.named_modules())
    head: Any = adapter.head
    inside = {id(module) for layer in adapter.decoder_layers for module in layer.modules()} | {id(head)}
    asked = {weight: weight.requires_grad for weight in adapter.model.parameters()}
    learned = {id(one) for name, one in chosen.items() if id(modules[name]) in inside}
    shared = {id(one): _Stored(one, id(one) in learned) for one in chosen.values()}  # by layers of equal weights
    stored = {name: shared[id(one)] for name, one in chosen.items()}
    with ExitStack() as undone:
        for weight, grad in asked.items():
            undone.callback(weight.requires_grad_, grad)
            weight.requires_grad_(False)
        for name, one in stored.items():
            undone.callback(_put_in_order, modules[name], list(modules[name]._parameters))
            parametrize.register_parametrization(modules[name], "weight", one, unsafe=True)
            undone.callback(parametrize.remove_parametrizations, modules[name], "weight", leave_parametrized=False)
        yield _Weights(stored)


def _put_in_order(module: nn.Module, names: Sequence[str]) -> None:
    """Let parameters come in an order again; one that a parametrization is taken off comes last."""
    own = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update((name, own[name]) for name in names)


def _learn(weights: _Weights, prompts: Sequence[Prompt], steps: int, report: Report) -> None:
    optimizer = torch.optim.AdamW(weights.factors, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        report("tuning scales", step, steps)
        for group in optimizer.param_groups:
            group["lr"] = RATE * learning_rate_factor(step, steps)
        optimizer.zero_grad()
        rng = np.random.default_rng(step)
        for number in rng.integers(len(prompts), size=AT_ONCE):
            with narrow():
                loss = _compared(weights, prompts[number], rng)
            (loss / AT_ONCE).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    report("tuning scales", steps, steps)


@torch.no_grad()
def _divergence(weights: _Weights, prompts: Sequence[Prompt]) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([float(_compared(weights, prompt, rng)) for prompt in prompts]))


def _compared(weights: _Weights, prompt: Prompt, rng: np.random.Generator) -> Tensor:
    """Mean KL divergence of next-token distributions, after some of the tokens that are left at the decoder's end."""
    with torch.no_grad(), weights.off():
        states = prompt.states()
        places = some_places(states, rng)
        wanted = prompt.scores(states[:, places])
    ours = prompt.scores(prompt.states()[:, places])
    return F.kl_div(ours, wanted, reduction="batchmean", log_target=True)
