"""What rounding a layer does to the model: estimated by gradients, and measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from exporters.precision.prompts import answered
from exporters.precision.quantize import linear_layers
from exporters.precision.sensitivity import divergences
from exporters.precision.small import Small, small
from tests.tiny import RECIPES, compressed, image
from vtc.data.samples import Sample
from vtc.models.base import VLMAdapter


def test_estimates_are_what_trying_each_layer_gives(adapter: VLMAdapter) -> None:
    model = compressed(adapter, *RECIPES["cls"])
    samples = [Sample([image(seed)], adapter.chat("what is it ?")) for seed in range(24)]
    layers = {name: layer for name, layer in linear_layers(adapter, head=True) if "language_model" in name}
    weights: dict[str, Small] = {}
    for name, layer in layers.items():
        found = small(layer.weight.detach().numpy(), 0, "int4", 16)
        assert found is not None
        weights[name] = found
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    estimated = divergences([model], weights, samples)
    for name, layer in layers.items():
        assert torch.equal(layer.weight, before[name])
        assert not layer._forward_hooks
    prompts = answered([model], samples)

    @torch.no_grad()
    def scores() -> list[torch.Tensor]:
        return [prompt.scores(prompt.states()) for prompt in prompts]

    wanted, measured = scores(), {}
    for name, layer in layers.items():
        layer.weight = nn.Parameter(torch.from_numpy(weights[name].values()), requires_grad=False)
        pairs = zip(wanted, scores(), strict=True)
        measured[name] = float(np.mean([float((a.exp() * (a - b)).sum(dim=-1).mean()) for a, b in pairs]))
        layer.weight = nn.Parameter(before[name], requires_grad=False)
    ours, theirs = (np.log([one[name] for name in layers]) for one in (estimated, measured))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.8
    assert abs(np.median(ours - theirs)) < np.log(2)
