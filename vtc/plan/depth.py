"""Which layers of the encoder and the decoder run under a recipe, and which of them see the image.

Layers left to calibration get provisional ones, so that a recipe can be inspected before any data is seen:
visual tokens exit at half depth, and the layers dropped are the deepest that may go (the decoder's last one
stays, it feeds the head).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vtc.facts.model import ModelFacts
from vtc.plan.faults import Faults
from vtc.recipe import Recipe
from vtc.recipe.layers import layer_at, listed_layers
from vtc.recipe.stages import LayerRemoval


@dataclass(frozen=True)
class EncoderDepth:
    """Which encoder layers run.

    Attributes
    ----------
    kept
        Layers that run, ascending.
    dropped
        For each stage that takes encoder layers away, by its number, those layers.
    """

    kept: tuple[int, ...]
    dropped: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class DecoderDepth:
    """Which decoder layers run and what they see.

    Attributes
    ----------
    kept
        Layers that run, ascending.
    skipped
        Those of them that visual tokens skip.
    exit
        Layer before which all visual tokens leave, or None.
    dropped
        For each stage that takes decoder layers away, by its number, those layers.
    cuts
        Layer before which a stage prunes, to the number of that stage; ascending.
    """

    kept: tuple[int, ...]
    skipped: frozenset[int]
    exit: int | None
    dropped: Mapping[int, tuple[int, ...]]
    cuts: Mapping[int, int]

    def sees_image(self, layer: int) -> bool:
        """Whether visual tokens are computed and attended in a layer."""
        return layer not in self.skipped and (self.exit is None or layer < self.exit)

    def cut_of(self, stage: int) -> int | None:
        """Return the layer before which stage number `stage` prunes."""
        return next((layer for layer, number in self.cuts.items() if number == stage), None)


class _Claims:
    """Which stage takes which layer away."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.owner: dict[int, int] = {}
        self.dropped: dict[int, tuple[int, ...]] = {}

    def claim(self, layers: tuple[int, ...], number: int) -> None:
        """Give layers to a stage; report those that an earlier one has."""
        for layer in layers:
            if layer in self.owner:
                self.faults.add(number, "layers", f"layer {layer} is dropped by stages.{self.owner[layer]} already")
        self.owner.update({layer: number for layer in layers if layer not in self.owner})
        self.dropped[number] = layers

    def choose(self, free: Sequence[int], count: int, number: int) -> None:
        """Give a stage the first `count` of the layers it may have."""
        if count > len(free):
            problem = f"cannot drop {count} layers, only {len(free)} are there to choose from"
            self.faults.add(number, "count", problem)
        self.claim(tuple(sorted(free[:count])), number)


def _removals(recipe: Recipe, component: str) -> list[tuple[int, LayerRemoval]]:
    """Number every stage that takes layers of a component away."""
    found = ((number, stage.removal) for number, stage in enumerate(recipe.stages))
    return [(number, removal) for number, removal in found if removal is not None and removal.component == component]


def _take_layers(
    removals: Sequence[tuple[int, LayerRemoval]],
    total: int,
    check: Callable[[int, LayerRemoval, tuple[int, ...]], None],
    free: Callable[[LayerRemoval, _Claims], Sequence[int]],
    faults: Faults,
) -> _Claims:
    """Let stages take the layers that they list, then those that are left to calibration provisional ones.

    Parameters
    ----------
    removals
        By stage number.
    total
        Layers of the component.
    check
        Called with a stage's number, what it takes and the layers it lists.
    free
        Given what a stage takes and what is taken already, the layers that it may have, best first.
    faults
        Receives what cannot be.
    """
    claims = _Claims(faults)
    for number, removal in removals:
        if removal.layers != "auto":
            add = _adder(faults, number, "layers")
            chosen = listed_layers(removal.layers, total, removal.component, add)
            check(number, removal, chosen)
            claims.claim(chosen, number)
    for number, removal in removals:
        if removal.layers == "auto":
            claims.choose(free(removal, claims), removal.count or 0, number)
    return claims


def _adder(faults: Faults, number: int, key: str) -> Callable[[str], None]:
    return lambda problem: faults.add(number, key, problem)


# Encoder ----------------------------------------------------------------------------------------------------


def encoder_depth(recipe: Recipe, facts: ModelFacts, faults: Faults) -> EncoderDepth:
    """Decide which encoder layers run."""
    encoder = facts.encoder
    removals = _removals(recipe, "encoder")
    wanted = {layer % encoder.layers for stage in recipe.stages for layer in stage.encoder_layers_named}

    def check(number: int, _: LayerRemoval, chosen: tuple[int, ...]) -> None:
        for layer in chosen:
            if layer > encoder.feature_layer:
                problem = f"encoder layer {layer} is not computed, layers 0 to {encoder.feature_layer} are"
                faults.add(number, "layers", problem)

    def free(_: LayerRemoval, claims: _Claims) -> list[int]:
        layers = [layer for layer in range(encoder.feature_layer + 1) if layer not in claims.owner]
        # Layers whose attention is asked for go last, and the feature layer before only them.
        return sorted(layers, key=lambda layer: (layer in wanted, layer == encoder.feature_layer, -layer))

    claims = _take_layers(removals, encoder.layers, check, free, faults)
    kept = tuple(layer for layer in range(encoder.feature_layer + 1) if layer not in claims.owner)
    if not kept:
        faults.add(removals[-1][0], "", "no encoder layer is left")
    return EncoderDepth(kept, claims.dropped)


# Decoder ----------------------------------------------------------------------------------------------------


def decoder_depth(recipe: Recipe, facts: ModelFacts, faults: Faults) -> DecoderDepth:
    """Decide which decoder layers run, which of them visual tokens skip, and where visual tokens leave."""
    total = facts.decoder.layers
    attempts = []
    for exit_layer in _exit_candidates(recipe, total, faults):
        attempt = Faults(faults.source)
        depth = _with_exit(recipe, total, exit_layer, attempt)
        if not attempt.found:
            return depth
        attempts.append((depth, attempt))
    depth, attempt = attempts[0]
    faults.found += attempt.found
    return depth


def _exit_candidates(recipe: Recipe, total: int, faults: Faults) -> Sequence[int | None]:
    """List the layers before which visual tokens may leave, best first; None is not at all."""
    exits = ((number, stage.exit_before) for number, stage in enumerate(recipe.stages))
    first = next(((number, layer) for number, layer in exits if layer is not None), None)
    if first is None:
        return [None]
    number, layer = first
    if layer == "auto":
        # Half depth, or the layer nearest to it that leaves the other stages something to work on.
        by_distance: list[int] = sorted(range(1, total), key=lambda place: (abs(place - total // 2), place))
        return by_distance or [None]
    found = layer_at(layer, total)
    if 1 <= found < total:
        return [found]
    faults.add(number, "layer", f"no exit before layer {layer} of {total}; give one from 1 to {total - 1}")
    return [None]


def _with_exit(recipe: Recipe, total: int, exit_layer: int | None, faults: Faults) -> DecoderDepth:
    """Decide the rest where visual tokens leave before `exit_layer`."""
    cuts = _cuts(recipe, total, exit_layer, faults)
    removals = _removals(recipe, "decoder")

    def check(number: int, removal: LayerRemoval, chosen: tuple[int, ...]) -> None:
        gone = [layer for layer in chosen if removal.visual_only and exit_layer is not None and layer >= exit_layer]
        if gone:
            problem = f"layer {gone[0]} sees no visual tokens, they leave before layer {exit_layer}"
            faults.add(number, "layers", problem)

    def free(removal: LayerRemoval, claims: _Claims) -> list[int]:
        layers = [layer for layer in reversed(range(total)) if layer not in claims.owner]
        if removal.visual_only:
            layers = [layer for layer in layers if exit_layer is None or layer < exit_layer]
            return [layer for layer in layers if layer not in cuts and layer + 1 not in cuts]
        return [layer for layer in layers[1:] + layers[:1] if layer not in cuts]

    dropped = _take_layers(removals, total, check, free, faults).dropped
    skipped = frozenset(layer for number, removal in removals if removal.visual_only for layer in dropped[number])
    removed = {layer for number, removal in removals if not removal.visual_only for layer in dropped[number]}
    kept = tuple(layer for layer in range(total) if layer not in removed)
    depth = DecoderDepth(kept, skipped, exit_layer, dropped, cuts)
    for layer, number in cuts.items():
        _check_cut(layer, number, depth, faults)
    _check_what_is_left(recipe, depth, faults)
    return depth


def _cuts(recipe: Recipe, total: int, exit_layer: int | None, faults: Faults) -> dict[int, int]:
    """Find the layers before which stages prune, and the numbers of those stages."""
    cuts: dict[int, int] = {}
    for number, stage in enumerate(recipe.stages):
        if stage.cut_before is None:
            continue
        layer = layer_at(stage.cut_before, total)
        before = max(cuts, default=0)
        if not 1 <= layer < total:
            problem = f"no cut before layer {stage.cut_before} of {total}; give one from 1 to {total - 1}"
            faults.add(number, "layer", problem)
        elif layer <= before:
            faults.add(number, "layer", f"layer {layer} does not come after layer {before} of stages.{cuts[before]}")
        elif exit_layer is not None and layer >= exit_layer:
            faults.add(number, "layer", f"layer {layer} sees no visual tokens, they leave before layer {exit_layer}")
        else:
            cuts[layer] = number
    return cuts


def _check_cut(layer: int, number: int, depth: DecoderDepth, faults: Faults) -> None:
    """Report a cut whose layer cannot rank the tokens: it must run, and they must come to it from the one before."""
    before = max((place for place in depth.kept if place < layer), default=None)
    if layer not in depth.kept:
        faults.add(number, "layer", f"layer {layer} is removed by this recipe")
    elif before is None:
        faults.add(number, "layer", f"no layer is left before layer {layer}; use a prune stage instead")
    elif layer in depth.skipped or before in depth.skipped:
        gone = layer if layer in depth.skipped else before
        faults.add(number, "layer", f"visual tokens skip layer {gone}; cut where they come from the layer before")


def _check_what_is_left(recipe: Recipe, depth: DecoderDepth, faults: Faults) -> None:
    """Report a decoder that has nothing left to run, nothing that sees the image, or nothing after the exit."""
    taking = [number for number, stage in enumerate(recipe.stages) if stage.removal or stage.exit_before is not None]
    last = max(taking, default=0)
    if not depth.kept:
        faults.add(last, "", "no decoder layer is left")
    elif not any(depth.sees_image(layer) for layer in depth.kept):
        faults.add(last, "", "no decoder layer is left that sees the image")
    elif depth.exit is not None and depth.kept[-1] < depth.exit:
        problem = f"no decoder layer is left from {depth.exit} on, so the visual exit there does nothing"
        faults.add(last, "", problem)
