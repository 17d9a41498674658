"""`drop_layers` with ``layers: auto``: the layers that do least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from vtc.calibrate.measuring import Measuring
from vtc.recipe import Recipe
from vtc.recipe.stages import DropLayersEntry, StageEntry


def choose(entry: DropLayersEntry, before: Recipe, measuring: Measuring) -> list[int]:
    """``count`` layers whose work, or whose work on visual tokens, is missed least."""
    ranked = _by_divergence(entry, before, measuring) if entry.visual_only else _by_influence(entry, before, measuring)
    return sorted(ranked[: entry.count])


def _by_divergence(entry: DropLayersEntry, before: Recipe, measuring: Measuring) -> list[int]:
    """Layers that visual tokens can skip, one at a time, by mean KL divergence."""
    plan = measuring.model(before).plan
    candidates: dict[int, StageEntry] = {
        layer: entry.model_copy(update={"layers": (layer,), "count": None})
        for layer in plan.decoder_layers
        if not {layer, layer + 1} & set(plan.cut_layers)
    }
    return measuring.best("calibrating the layers to skip", before, candidates)


def _by_influence(entry: DropLayersEntry, before: Recipe, measuring: Measuring) -> list[int]:
    """Layers by block influence, 1 - cos(input, output) averaged over tokens.

    Based on ShortGPT (Men et al. 2024, arXiv 2403.03853), equation 1.
    """
    model, adapter = measuring.model(before), measuring.adapter
    if entry.component == "encoder":
        modules = {layer: adapter.encoder_layers[layer] for layer in model.plan.encoder_layers}
    else:
        layers = [layer for layer in model.plan.decoder_layers if layer not in model.plan.cut_layers]
        modules = {layer: adapter.decoder_layers[layer] for layer in layers}

    def measure() -> dict[str, float]:
        with recording_influence(modules) as influence:
            for done, batch in enumerate(batches := list(measuring.batches())):
                measuring.report("measuring block influence", done, len(batches))
                model.generate([s.images for s in batch], [s.prompt for s in batch], max_new_tokens=1)
        return {str(layer): float(np.mean(values)) for layer, values in influence.items()}

    influence = measuring.measurements.get(f"influence {entry.component} {before.digest}", measure)
    return sorted(modules, key=lambda layer: (influence[str(layer)], layer))


@contextmanager
def recording_influence(layers: dict[int, nn.Module]) -> Iterator[dict[int, list[float]]]:
    """While open, record 1 - cos(input, output) of each layer, averaged over the tokens of each call."""
    influence: dict[int, list[float]] = {layer: [] for layer in layers}

    def record(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            cosine = torch.nn.functional.cosine_similarity(inputs[0], output, dim=-1)
            influence[layer].append(float(1 - cosine.mean()))

        return hook

    handles = [module.register_forward_hook(record(layer)) for layer, module in layers.items()]
    try:
        yield influence
    finally:
        for handle in handles:
            handle.remove()
