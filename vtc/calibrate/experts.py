"""Who uses which expert, measured on prompts: with all visual tokens, and with those that a recipe keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import load_compressed
from vtc.compressed.following import following
from vtc.compressed.inspection import is_finished
from vtc.compressed.model import CompressedModel
from vtc.data.datasets import data_for
from vtc.data.samples import Sample, samples_from
from vtc.errors import InputError
from vtc.experts.modality import GaussianScores, modality_labels
from vtc.experts.statistics import MODALITIES, ExpertStatistics, ExpertUse, Floats, Numbers, Routes
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.model import DecoderFacts
from vtc.facts.placement import ON_CPU, Placement
from vtc.models import load_adapter, model_digest, read_facts, resolve_model
from vtc.models.base import VLMAdapter
from vtc.models.placing import check_in_memory
from vtc.models.routers import Routed, Tokens, check_mixture, chosen_outputs, watching_routers
from vtc.plan import plan
from vtc.progress import Report, silent
from vtc.recipe import NONE, Recipe

ROUTES = 20_000
"""Tokens whose routes are kept, at most."""
BATCH = 8
SUMMED = ("chosen", "weight", "norm", "weighted_norm", "attention", "gaussian")
"""Sums by layer, modality and expert."""


def measure_statistics(
    model: str | Path,
    recipe: Recipe,
    data: str | None,
    count: int,
    seed: int,
    image_options: ImageOptions = ANY_IMAGE,
    placement: Placement = ON_CPU,
    report: Report = silent,
) -> ExpertStatistics:
    """Measure who uses which expert of a checkpoint, or of a compressed model; see :func:`vtc.expert_statistics`."""
    compressed = None
    if is_finished(model):
        compressed, recipe, origin = load_compressed(Path(model), placement=placement, first=_check_outline)
        adapter, name, digest = compressed.adapter, origin.name, origin.digest
    else:
        if recipe.autos:
            raise InputError(
                f"recipe {recipe.name} leaves {recipe.autos[0]} open; compress the model with it, and give that"
            )
        path = resolve_model(model)
        plan(recipe, read_facts(path, image_options))
        adapter = load_adapter(path, image_options, placement, check_mixture)
        name, digest = str(model), model_digest(path)
    source = data_for(name, data)
    if source is None:
        raise InputError(f"say what to ask {name}: --data DIR with data.jsonl; drawn digits are for 'reference' alone")
    samples = samples_from(adapter, source, count, seed)
    uses = {"full": expert_use(apply_recipe(adapter, NONE), samples, report)}
    if recipe.stages:
        compressed = compressed or apply_recipe(adapter, recipe, model_digest=digest)
        uses["pruned"] = expert_use(compressed, samples, report)
    told = f"{len(samples)} questions of {source}, seed {seed}"
    return ExpertStatistics(digest, told, len(samples), uses, recipe.name if recipe.stages else "")


def _check_outline(outline: VLMAdapter, _: Recipe) -> None:
    check_mixture(outline)


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
    _watch(model, samples, counting, "watching the experts", report)
    return counting.use()


def _watch(
    model: CompressedModel, samples: Sequence[Sample], watcher: _Counting | _Drawn, words: str, report: Report
) -> None:
    """Run prompts, and let a watcher see what their tokens are and what becomes of them."""
    check_mixture(model.adapter)
    check_in_memory(model.adapter.model, "experts are watched")
    with (
        watching_routers(model.adapter, watcher.add) as tell,
        following(model, lambda *entering: tell(watcher.enter(*entering)), watcher.leave) as follow,
    ):
        for first in range(0, len(samples), BATCH):
            report(words, first, len(samples))
            batch = samples[first : first + BATCH]
            ids, mask, pixels = model.inputs([s.images for s in batch], [s.prompt for s in batch])
            follow(watcher.begin(ids == model.adapter.image_token_id, mask.bool(), first))
            model.prefill(ids, mask, pixels)
    report(words, len(samples), len(samples))


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
        self.routes.append(np.full((len(self.confidence), len(kinds), self.active), -1))
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
        self.routes[-1][layer, _numbers(self.rows[real])] = _numbers(chosen)

    def use(self) -> ExpertUse:
        """All of it."""
        parts = np.concatenate(self.routes, axis=1), np.concatenate(self.modality), np.concatenate(self.sample)
        routes = Routes(parts[0][:, : self.most], parts[1][: self.most], parts[2][: self.most])
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


@dataclass(frozen=True)
class LayerOutputs:
    """What all experts of a layer make of some tokens.

    Attributes
    ----------
    outputs : array of shape (E, T, D)
    logits : array of shape (T, E)
        The router's.
    """

    outputs: Floats
    logits: Floats


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
    _watch(model, samples, drawn, "running every expert", report)
    decoder = model.adapter.facts.decoder
    nothing = LayerOutputs(np.zeros((decoder.experts, 1, decoder.width)), np.zeros((1, decoder.experts)))
    return [drawn.outputs(layer) if layer in drawn.experts else nothing for layer in range(decoder.layers)]


class _Drawn:
    """Some tokens of each batch, as the routers see them."""

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.hidden: dict[int, list[Tensor]] = {}
        self.logits: dict[int, list[Tensor]] = {}
        self.experts: dict[int, Any] = {}
        self.visual = self.real = torch.empty(0)

    def begin(self, visual: Tensor, real: Tensor, first: int) -> Tensor:
        """As for :class:`_Counting`."""
        return torch.cat([modality_labels(visual), visual[..., None].float()], dim=-1)

    def enter(self, values: Tensor, mask: Tensor, position_ids: Tensor) -> Tokens:
        """As for :class:`_Counting`."""
        self.visual, self.real = values[..., 2].bool(), mask.bool()
        return Tokens(position_ids, values[..., :2])

    def leave(self, values: Tensor) -> Tensor:
        """As for :class:`_Counting`."""
        return values

    def add(self, routed: Routed) -> None:
        """Take some tokens of each modality."""
        for own in (self.real & ~self.visual, self.real & self.visual):
            places = own.nonzero()
            some = torch.linspace(0, len(places) - 1, min(self.most, len(places))).long()
            rows, columns = places[some].unbind(1)
            self.hidden.setdefault(routed.layer, []).append(routed.hidden[rows, columns])
            self.logits.setdefault(routed.layer, []).append(routed.logits[rows, columns])
        self.experts[routed.layer] = routed.experts

    def outputs(self, layer: int) -> LayerOutputs:
        """What all experts of a layer make of them."""
        hidden, logits, experts = torch.cat(self.hidden[layer]), torch.cat(self.logits[layer]), self.experts[layer]
        everyone = torch.arange(len(experts.gate_up_proj), device=hidden.device).expand(len(hidden), -1)
        outputs = torch.stack([output for _, output in chosen_outputs(experts, hidden, everyone)])
        return LayerOutputs(*(np.asarray(values.double().cpu()) for values in (outputs, logits)))
