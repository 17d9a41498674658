"""Layers as a recipe names them: by number, from the end, or as a share of the depth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vtc.facts.model import EncoderFacts


def layer_at(layer: int | float, total: int) -> int:
    """Resolve a decoder layer given by number, from the end, or as a share of `total` layers; it may lie outside."""
    if isinstance(layer, float):
        return min(max(1, round(layer * total)), total - 1)
    return layer + total if layer < 0 else layer


def listed_layers(layers: Iterable[int], total: int, component: str, fault: Callable[[str], None]) -> tuple[int, ...]:
    """Resolve layer numbers, negative ones from the end, to ascending ones.

    Parameters
    ----------
    layers
        As the recipe lists them.
    total, component
        How many layers there are, and of what.
    fault
        Called with what is wrong with a number, which is then left out.
    """
    found: dict[int, int] = {}
    for layer in layers:
        actual = layer + total if layer < 0 else layer
        if not 0 <= actual < total:
            fault(f"no layer {layer}: the {component} has {total} layers, 0 to {total - 1}")
        elif actual in found:
            fault(f"layers {found[actual]} and {layer} are the same of {total}")
        else:
            found[actual] = layer
    return tuple(sorted(found))


def encoder_layer_at(depth: int | float, encoder: EncoderFacts, running: Sequence[int]) -> int:
    """Resolve an encoder layer given by number or by its share of the depth to the nearest one that runs.

    A share of 0.25 of 24 layers is the sixth, number 5.
    """
    if isinstance(depth, float):
        wanted = max(0, round(depth * encoder.layers) - 1)
    else:
        wanted = depth + encoder.layers if depth < 0 else depth
    return min(running, key=lambda layer: (abs(layer - wanted), layer))


def after_features(encoder: EncoderFacts, running: Sequence[int]) -> int:
    """Return the layer whose queries and keys are made of the features, or the last one where none follows."""
    return min(running[-1] + 1, encoder.layers - 1)
