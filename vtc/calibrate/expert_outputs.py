"""What all experts of each layer, chosen or not, make of some tokens of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtc.calibrate.watching import BATCH, watch
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.experts.modality import modality_labels
from vtc.experts.statistics import MODALITIES, Floats
from vtc.models.routers import Routed, Tokens, chosen_outputs
from vtc.progress import Report, silent


@dataclass(frozen=True)
class LayerOutputs:
    """What all experts of a layer make of some tokens.

    Attributes
    ----------
    outputs : array of shape (E, T, D)
    logits : array of shape (T, E)
        The router's.
    largest : array of shape (T,)
        Weight that the router gives the first of a token's experts.
    """

    outputs: Floats
    logits: Floats
    largest: Floats


@torch.inference_mode()
def layer_outputs(
    model: CompressedModel, samples: Sequence[Sample], report: Report = silent, tokens: int = 512
) -> list[LayerOutputs]:
    """What all experts of each layer, chosen or not, make of some tokens of prompts; zeros where it does not run.

    Parameters
    ----------
    model : CompressedModel
        A mixture of experts.
    samples : sequence of Sample
    report : callable
    tokens : int
        At most: as many of each modality, where there are as many, drawn evenly.
    """
    drawn = _Drawn(tokens // (len(MODALITIES) * -(-len(samples) // BATCH)))
    watch(model, samples, drawn, "running every expert", report)
    decoder = model.adapter.facts.decoder
    alike = np.full(1, 1 / decoder.active_experts)
    nothing = LayerOutputs(np.zeros((decoder.experts, 1, decoder.width)), np.zeros((1, decoder.experts)), alike)
    return [drawn.outputs(layer) if layer in drawn.experts else nothing for layer in range(decoder.layers)]


class _Drawn:
    """Some tokens of each batch, as the routers see them."""

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.hidden: dict[int, list[Tensor]] = {}
        self.logits: dict[int, list[Tensor]] = {}
        self.largest: dict[int, list[Tensor]] = {}
        self.experts: dict[int, Any] = {}
        self.visual = self.real = torch.empty(0)

    def begin(self, visual: Tensor, real: Tensor, first: int) -> Tensor:
        """As for :class:`~vtc.calibrate.watching.Watcher`."""
        return torch.cat([modality_labels(visual), visual[..., None].float()], dim=-1)

    def enter(self, values: Tensor, mask: Tensor, position_ids: Tensor) -> Tokens:
        """As for :class:`~vtc.calibrate.watching.Watcher`."""
        self.visual, self.real = values[..., 2].bool(), mask.bool()
        return Tokens(position_ids, values[..., :2])

    def leave(self, values: Tensor) -> Tensor:
        """As for :class:`~vtc.calibrate.watching.Watcher`."""
        return values

    def add(self, routed: Routed) -> None:
        """Take some tokens of each modality."""
        for own in (self.real & ~self.visual, self.real & self.visual):
            places = own.nonzero()
            some = torch.linspace(0, len(places) - 1, min(self.most, len(places))).long()
            rows, columns = places[some].unbind(1)
            self.hidden.setdefault(routed.layer, []).append(routed.hidden[rows, columns])
            self.logits.setdefault(routed.layer, []).append(routed.logits[rows, columns])
            self.largest.setdefault(routed.layer, []).append(routed.weights[rows, columns].amax(dim=-1))
        self.experts[routed.layer] = routed.experts

    def outputs(self, layer: int) -> LayerOutputs:
        """What all experts of a layer make of them."""
        experts = self.experts[layer]
        hidden, logits, largest = (torch.cat(one[layer]) for one in (self.hidden, self.logits, self.largest))
        everyone = torch.arange(len(experts.gate_up_proj), device=hidden.device).expand(len(hidden), -1)
        outputs = torch.stack([output for _, output in chosen_outputs(experts, hidden, everyone)])
        return LayerOutputs(*(np.asarray(values.double().cpu()) for values in (outputs, logits, largest)))
