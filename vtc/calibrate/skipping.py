"""What skipping experts by modality would lose: thresholds found on some prompts, and measured on others.

Skipping is simulated, as its authors' code does: the weight of a skipped expert is 0, and those of others stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtc.calibrate.watching import BATCH
from vtc.compressed.model import CompressedModel
from vtc.data.fidelity import divergence
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.experts.skipping import Skipped, SkippingReport, skip_thresholds
from vtc.experts.statistics import MODALITIES, TEXT, VISUAL, Floats
from vtc.models.placing import check_in_memory
from vtc.models.routers import check_mixture, router_and_experts
from vtc.progress import Report, silent

LEVELS = 16
"""Thresholds of a modality that are tried: quantiles of what its expert calls count for."""
Logits = list[NDArray[np.float32]]


class SkippedExperts:
    """What is skipped in a model while :func:`skipping` is open, and counts of it.

    Parameters
    ----------
    layers : int

    Attributes
    ----------
    limits : Tensor of shape (2, L)
        Weight of a chosen expert below which it is skipped, by modality and layer.
    calls, skipped : Tensors of shape (2,)
        Expert calls of real tokens so far, by modality, and those skipped.
    counts : list of (Tensor of shape (T, k), Tensor of shape (T,), int), or None
        Weights, modalities and layer of calls, where they are to be kept.
    """

    def __init__(self, layers: int) -> None:
        self.limits = torch.zeros(len(MODALITIES), layers)
        self.calls = torch.zeros(len(MODALITIES))
        self.skipped = torch.zeros(len(MODALITIES))
        self.counts: list[tuple[Tensor, Tensor, int]] | None = None
        self._modality = self._real = torch.empty(0)

    def by_thresholds(self, importance: Floats, text: float, visual: float) -> None:
        """Skip what counts for less than a threshold: the layer's importance (2, L) for the modality times weight."""
        thresholds = np.array([[text], [visual]])
        limits = np.where(thresholds > 0, thresholds / np.maximum(importance, 1e-30), 0.0)
        self.limits = torch.from_numpy(limits)

    def share(self) -> Skipped:
        """The shares of expert calls that were skipped; counting begins anew."""
        calls, skipped = self.calls.tolist(), self.skipped.tolist()
        self.calls, self.skipped = torch.zeros_like(self.calls), torch.zeros_like(self.skipped)
        text, visual = (some / every if every else None for some, every in zip(skipped, calls, strict=True))
        return Skipped(text, visual, sum(skipped) / max(sum(calls), 1))

    def enter(self, modality: Tensor) -> None:
        """Take note of the tokens (B, S) that come in, 1 where they are visual."""
        self._modality = modality.flatten().long()

    def mask(self, real: Tensor) -> None:
        """Take note of which (B, S) are no padding."""
        self._real = real.flatten().bool()

    def weigh(self, layer: int, weights: Tensor) -> Tensor:
        """Weights (T, k) of the chosen experts, 0 for those that are skipped."""
        limits = self.limits.to(weights.device)[self._modality, layer]
        skips = weights.double() < limits[:, None]
        for kind in range(len(MODALITIES)):
            own = self._real & (self._modality == kind)
            self.calls[kind] += float(own.sum()) * weights.shape[1]
            self.skipped[kind] += float(skips[own].sum())
        if self.counts is not None:
            self.counts.append((weights[self._real].double().cpu(), self._modality[self._real].cpu(), layer))
        return weights.masked_fill(skips, 0)


@contextmanager
def skipping(model: CompressedModel) -> Iterator[SkippedExperts]:
    """While open, have a model skip experts: none at first.

    Parameters
    ----------
    model : CompressedModel
        A mixture of experts whose layers all see the same tokens.

    Raises
    ------
    InputError
        If it is dense, or cuts visual tokens inside the decoder, or not all weights are in memory.
    """
    adapter = model.adapter
    check_mixture(adapter)
    check_in_memory(adapter.model, "experts are skipped")
    if len(model.plan.segments) > 1:
        raise InputError(
            f"{adapter.path}: visual tokens leave inside the decoder, and skipping is measured where all layers see "
            "the same tokens; measure without those stages"
        )
    state = SkippedExperts(len(adapter.decoder_layers))

    def weighing(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def weigh(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, chosen, weights = given
            return hidden, chosen, state.weigh(layer, weights)

        return weigh

    with ExitStack() as hooked:
        entering = model.embed_tokens.register_forward_pre_hook(
            lambda _, given: state.enter(given[0] == adapter.image_token_id)
        )
        hooked.callback(entering.remove)
        masking = model.segments[0].register_forward_pre_hook(
            lambda _, given: state.mask(given[1][:, -given[0].shape[1] :])
        )
        hooked.callback(masking.remove)
        for number, layer in enumerate(adapter.decoder_layers):
            found = router_and_experts(layer)
            if found is not None:
                hooked.callback(found[1].register_forward_pre_hook(weighing(number)).remove)
        yield state


@torch.inference_mode()
def measure_skipping(
    model: CompressedModel, samples: Sequence[Sample], share: float, report: Report = silent
) -> SkippingReport:
    """Find thresholds that skip a share of expert calls and lose least, on half of the prompts, and measure the others.

    Parameters
    ----------
    model : CompressedModel
    samples : sequence of Sample
        At least two.
    share : float
    report : callable

    Raises
    ------
    InputError
        As for :func:`skipping`; or if there are too few samples.

    Notes
    -----
    Based on MoDES (arXiv 2511.15690). Its importance of a layer is measured at the first token of an answer, and
    thresholds are tried at quantiles rather than at a hundred fixed values.
    """
    if len(samples) < 2:
        raise InputError(f"{len(samples)} question is too few: thresholds are found on half and measured on the others")
    with skipping(model) as state:
        passes = _Passes(model, state, samples[::2], report)
        state.counts = []
        passes.original = passes.run()
        calls, state.counts = state.counts, None
        importance = passes.importance()
        of_text, of_visual = (_quantiles(calls, importance, kind) for kind in (TEXT, VISUAL))

        def evaluate(text: float, visual: float) -> tuple[float, float]:
            state.by_thresholds(importance, text, visual)
            loss = passes.loss()
            return loss, state.share().all

        thresholds = skip_thresholds(evaluate, of_text, of_visual, share)
        state.limits = torch.zeros_like(state.limits)
        others = _Passes(model, state, samples[1::2], silent)
        others.original = others.run()
        state.share()
        state.by_thresholds(importance, thresholds.text, thresholds.visual)
        loss = others.loss()
        return SkippingReport(share, thresholds, importance, loss, state.share())


class _Passes:
    """Prompts, images encoded once, run again and again."""

    def __init__(
        self, model: CompressedModel, state: SkippedExperts, samples: Sequence[Sample], report: Report
    ) -> None:
        self.model, self.state, self.report, self.done = model, state, report, 0
        self.total = len(MODALITIES) * state.limits.shape[1] + 3 * LEVELS  # the search takes 39 to 45 where measured
        self.original: Logits = []
        self.batches: list[tuple[Tensor, Tensor, tuple[Tensor, ...] | None]] = []
        for first in range(0, len(samples), BATCH):
            batch = samples[first : first + BATCH]
            ids, mask, pixels = model.inputs([s.images for s in batch], [s.prompt for s in batch])
            host, real = np.asarray(ids.cpu()), np.asarray(mask.cpu())
            encoded = None if pixels is None else model.encode(model.embed_tokens(ids), host, real, pixels)
            self.batches.append((ids, mask, encoded))

    def run(self) -> Logits:
        """Logits (B, vocabulary) of each batch's first answered token."""
        found = [self.model.prefill(ids, mask, None, encoded=encoded)[0] for ids, mask, encoded in self.batches]
        return [np.asarray(logits[:, -1].float().cpu()) for logits in found]

    def loss(self) -> float:
        """KL divergence from the original's distribution, mean over prompts, in nats."""
        if self.done <= self.total:
            self.report("skipping experts", self.done, self.total)
        self.done += 1
        moved = [divergence(ours, theirs).kld for ours, theirs in zip(self.original, self.run(), strict=True)]
        return float(np.concatenate(moved).mean())

    def importance(self) -> Floats:
        """Of each layer for the tokens of a modality, (2, L): what skipping all of their experts loses, as a share."""
        losses = np.zeros(self.state.limits.shape)
        for kind, layer in np.ndindex(losses.shape):
            self.state.limits = torch.zeros_like(self.state.limits)
            self.state.limits[kind, layer] = torch.inf
            losses[kind, layer] = self.loss()
        self.state.share()
        return np.asarray(losses / np.maximum(losses.sum(axis=1, keepdims=True), 1e-30))


def _quantiles(calls: Sequence[tuple[Tensor, Tensor, int]], importance: Floats, kind: int) -> Floats:
    """Thresholds of a modality, ascending: the first skips nothing, and the last everything."""
    counted = [importance[kind, layer] * given[modality == kind].flatten().numpy() for given, modality, layer in calls]
    values = np.concatenate(counted)
    if not values.size:
        return np.zeros(1)
    levels = np.quantile(values, np.linspace(0, 1, LEVELS))
    return np.unique(np.append(np.insert(levels[:-1], 0, 0.0), np.nextafter(values.max(), np.inf)))
