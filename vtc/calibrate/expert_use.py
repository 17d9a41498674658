"""Who uses which expert, summed over the tokens of prompts as they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtc.calibrate.watching import watch
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.experts.modality import GaussianScores, modality_labels
from vtc.experts.statistics import MODALITIES, ExpertUse, Floats, Numbers, Routes
from vtc.facts.model import DecoderFacts
from vtc.models.routers import Routed, Tokens, chosen_outputs
from vtc.progress import Report, silent

ROUTES = 20_000
"""Tokens whose routes are kept, at most."""
SUMMED = ("chosen", "weight", "norm", "weighted_norm", "attention", "gaussian")
"""Sums by layer, modality and expert."""


@torch.inference_mode()
def expert_use(
    model: CompressedModel, samples: Sequence[Sample], report: Report = silent, routes: int = ROUTES
) -> ExpertUse:
    """What each expert does on prompts; answers, which are text, are not part of them.

    Parameters
    ----------
    model : CompressedModel
    samples : sequence of Sample
    report : callable
    routes : int
        Tokens whose routes are kept, at most.

    Raises
    ------
    InputError
        If the model is dense, or not all weights are in memory.
    """
    counting = _Counting(model.adapter.facts.decoder, routes)
    watch(model, samples, counting, "watching the experts", report)
    return counting.use()


class _Counting:
    """Sums over tokens, as they run.

    What is known of a token goes with it: two soft scores, whether it is visual, and its number in the batch.
    """

    def __init__(self, decoder: DecoderFacts, routes: int) -> None:
        shape = (decoder.layers, len(MODALITIES), decoder.experts)
        self.sums = {name: np.zeros(shape) for name in SUMMED}
        self.together = np.zeros((*shape, decoder.experts))
        self.confidence = np.zeros(shape[:2])
        self.seen = np.zeros(len(MODALITIES))
        self.most, self.active = routes, decoder.active_experts
        self.routes: list[Numbers] = []
        self.modality: list[Numbers] = []
        self.sample: list[Numbers] = []
        self.gaussian = GaussianScores(decoder.layers, decoder.width)
        self.tokens = Tokens(torch.empty(0), torch.empty(0))
        self.visual = self.real = self.rows = torch.empty(0)

    def begin(self, visual: Tensor, real: Tensor, first: int) -> Tensor:
        """Start a batch of prompts, the first of which has the number `first`; gives what goes with its tokens."""
        kinds = visual[real].long()
        self.seen += np.bincount(_numbers(kinds), minlength=len(MODALITIES))
        self.modality.append(_numbers(kinds))
        self.sample.append(_numbers(first + real.nonzero()[:, 0]))
        kept = min(len(kinds), max(0, self.most - sum(map(len, self.modality[:-1]))))
        self.routes.append(np.full((len(self.confidence), kept, self.active), -1))
        rows = (real.flatten().cumsum(0) - 1).reshape(real.shape)
        return torch.cat([modality_labels(visual), torch.stack([visual, rows], dim=-1)], dim=-1)

    def enter(self, values: Tensor, mask: Tensor, position_ids: Tensor) -> Tokens:
        """Take note of the tokens that enter a segment."""
        self.visual, self.rows, self.real = values[..., 2].bool(), values[..., 3].long(), mask.bool()
        self.tokens = Tokens(position_ids, values[..., :2])
        return self.tokens

    def leave(self, values: Tensor) -> Tensor:
        """Give the tokens that leave it the scores that they have by then."""
        return torch.cat([self.tokens.scores.to(values), values[..., 2:]], dim=-1)

    def add(self, routed: Routed) -> None:
        """Take in what a layer's router decided."""
        layer, real = routed.layer, self.real
        self.gaussian.to(routed.hidden.device)
        self.gaussian.update(layer, routed.hidden, self.visual, real)
        chosen, weights = routed.chosen[real], routed.weights[real].double()
        norms = output_norms(routed, real).double()
        picked = F.one_hot(chosen, self.together.shape[-1]).double()
        kinds = F.one_hot(self.visual[real].long(), len(MODALITIES)).double()
        experts = picked.sum(dim=1)

        def summed(shares: Tensor, values: Tensor = experts) -> Floats:
            return np.asarray(torch.einsum("tm,te->me", shares.double(), values).cpu())

        def of_choices(values: Tensor) -> Floats:
            return summed(kinds, torch.einsum("tk,tke->te", values, picked))

        found = {
            "chosen": summed(kinds),
            "weight": of_choices(weights),
            "norm": of_choices(norms),
            "weighted_norm": of_choices(weights * norms),
            "attention": summed(routed.scores[real]),
            "gaussian": summed(self.gaussian.scores(layer, routed.hidden)[real]),
        }
        for name, value in found.items():
            self.sums[name][layer] += value
        once = experts.clamp(max=1)
        together = torch.einsum("tm,te,tf->mef", kinds, once, once).cpu()
        together.diagonal(dim1=1, dim2=2).copy_(torch.from_numpy(found["chosen"]))
        self.together[layer] += together.numpy()
        surest = routed.logits[real].double().softmax(dim=-1).amax(dim=-1, keepdim=True)
        self.confidence[layer] += summed(kinds, surest)[:, 0]
        rows, kept = _numbers(self.rows[real]), self.routes[-1].shape[1]
        self.routes[-1][layer, rows[rows < kept]] = _numbers(chosen)[rows < kept]

    def use(self) -> ExpertUse:
        """All of it."""
        modality, sample = (np.concatenate(parts)[: self.most] for parts in (self.modality, self.sample))
        routes = Routes(np.concatenate(self.routes, axis=1), modality, sample)
        sums = {**self.sums, "together": self.together, "confidence": self.confidence}
        return ExpertUse(tokens=self.seen, routes=routes, **sums)


def output_norms(routed: Routed, real: Tensor) -> Tensor:
    """Norm of the output of each expert that a token chose, (T, k), before the router's weight.

    Parameters
    ----------
    routed : Routed
    real : Tensor of shape (B, S), bool
        The T tokens that are no padding.
    """
    chosen = routed.chosen[real]
    experts: Any = routed.experts
    norms = routed.hidden.new_zeros(len(chosen), len(experts.gate_up_proj))
    for expert, outputs in chosen_outputs(experts, routed.hidden[real], chosen):
        norms[(chosen == expert).any(dim=1), expert] = outputs.norm(dim=-1)
    return norms.gather(1, chosen)


def _numbers(values: Tensor) -> Numbers:
    return np.asarray(values.cpu().numpy(), dtype=np.int64)
