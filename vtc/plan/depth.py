"""Which layers of the encoder and the decoder run under a recipe, and which of them see the image.

Layers left to calibration get provisional ones, so that a recipe can be inspected before any data is seen:
visual tokens exit at half depth, and the layers dropped are the deepest that may go (the decoder's last one
stays, it feeds the head).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vtc.facts.model import ModelFacts
from vtc.recipe import Origin, Recipe
from vtc.recipe.stages import DropLayersEntry, PruneEntry, PruneInDecoderEntry, VisualExitEntry
from vtc.recipe.yaml_lines import KeyPath


@dataclass
class Faults:
    """What does not fit, gathered so that all of it can be said at once."""

    origin: Origin
    found: list[tuple[KeyPath, str]] = field(default_factory=list)

    def add(self, stage: int, key: str, problem: str) -> None:
        """Note a problem with a key of stage number `stage`, or with all of it when `key` is empty."""
        self.add_at(("stages", stage, *(key.split(".") if key else ())), problem)

    def add_at(self, path: KeyPath, problem: str) -> None:
        """Note a problem with the value at `path`."""
        self.found.append((path, problem))

    def messages(self) -> list[str]:
        """Return one line for each problem, in the order of the recipe's text."""
        ordered = sorted(self.found, key=lambda fault: (self.origin.line(fault[0]), fault[0][:2]))
        return [self.origin.message(path, problem) for path, problem in ordered]


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
        For each `drop_layers` stage of the decoder, by its number, its layers.
    cuts
        Layer before which a `prune_in_decoder` stage acts, to the number of that stage; ascending.
    """

    kept: tuple[int, ...]
    skipped: frozenset[int]
    exit: int | None
    dropped: dict[int, tuple[int, ...]]
    cuts: dict[int, int]

    def sees_image(self, layer: int) -> bool:
        """Whether visual tokens are computed and attended in a layer."""
        return layer not in self.skipped and (self.exit is None or layer < self.exit)


# Encoder ----------------------------------------------------------------------------------------------------


def encoder_depth(
    recipe: Recipe, facts: ModelFacts, faults: Faults
) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
    """Decide which encoder layers run.

    Parameters
    ----------
    recipe, facts
        What to do to which model.
    faults
        Receives what cannot be.

    Returns
    -------
    tuple of int
        Layers that run, ascending, none after the feature layer.
    dict
        For each `drop_layers` stage of the encoder, by its number, its layers.
    """
    encoder = facts.encoder
    drops = [(n, s) for n, s in enumerate(recipe.stages) if isinstance(s, DropLayersEntry) and s.component == "encoder"]
    owner: dict[int, int] = {}
    dropped: dict[int, tuple[int, ...]] = {}
    for number, stage in drops:
        if stage.layers == "auto":
            continue
        chosen = listed_layers(stage.layers, encoder.layers, "encoder", number, "layers", faults)
        for layer in chosen:
            if layer > encoder.feature_layer:
                faults.add(
                    number,
                    "layers",
                    f"encoder layer {layer} is not computed, layers 0 to {encoder.feature_layer} are",
                )
        dropped[number] = _claim(chosen, owner, number, faults)
    wanted = {
        layer % encoder.layers
        for stage in recipe.stages
        if isinstance(stage, PruneEntry)
        for layer in stage.selector.layers_named
    }
    for number, stage in drops:
        if stage.layers != "auto":
            continue
        free = [layer for layer in range(encoder.feature_layer + 1) if layer not in owner]
        # Layers whose attention is asked for go last, and the feature layer before only them.
        free.sort(key=lambda layer: (layer in wanted, layer == encoder.feature_layer, -layer))
        dropped[number] = _choose(free, stage.count or 0, owner, number, faults)
    kept = tuple(layer for layer in range(encoder.feature_layer + 1) if layer not in owner)
    if not kept:
        faults.add(drops[-1][0], "", "no encoder layer is left")
    return kept, dropped


# Decoder ----------------------------------------------------------------------------------------------------


def decoder_depth(recipe: Recipe, facts: ModelFacts, faults: Faults) -> DecoderDepth:
    """Decide which decoder layers run, which of them visual tokens skip, and where visual tokens leave."""
    total = facts.decoder.layers
    exits = [(number, stage) for number, stage in enumerate(recipe.stages) if isinstance(stage, VisualExitEntry)]
    candidates: Sequence[int | None] = [None]
    if exits:
        number, stage = exits[0]
        if stage.layer == "auto":
            # Half depth, or the layer nearest to it that leaves the other stages something to work on.
            by_distance = sorted(range(1, total), key=lambda place: (abs(place - total // 2), place))
            candidates = by_distance or [None]
        else:
            layer = layer_at(stage.layer, total)
            candidates = [layer] if 1 <= layer < total else [None]
            if candidates == [None]:
                problem = f"no exit before layer {stage.layer} of {total}; give one from 1 to {total - 1}"
                faults.add(number, "layer", problem)
    attempts = []
    for candidate in candidates:
        attempt = Faults(faults.origin)
        depth = _decoder_depth(recipe, total, candidate, attempt)
        if not attempt.found:
            return depth
        attempts.append((depth, attempt))
    depth, attempt = attempts[0]
    faults.found += attempt.found
    return depth


def _decoder_depth(recipe: Recipe, total: int, exit_layer: int | None, faults: Faults) -> DecoderDepth:
    drops = [(n, s) for n, s in enumerate(recipe.stages) if isinstance(s, DropLayersEntry) and s.component == "decoder"]
    cuts = _cuts(recipe, total, exit_layer, faults)
    owner: dict[int, int] = {}
    dropped: dict[int, tuple[int, ...]] = {}
    for number, stage in drops:
        if stage.layers == "auto":
            continue
        chosen = listed_layers(stage.layers, total, "decoder", number, "layers", faults)
        gone = [layer for layer in chosen if stage.visual_only and exit_layer is not None and layer >= exit_layer]
        if gone:
            faults.add(
                number,
                "layers",
                f"layer {gone[0]} sees no visual tokens, they leave before layer {exit_layer}",
            )
        dropped[number] = _claim(chosen, owner, number, faults)
    for number, stage in drops:
        if stage.layers != "auto":
            continue
        free = [layer for layer in reversed(range(total)) if layer not in owner]
        if stage.visual_only:
            free = [layer for layer in free if exit_layer is None or layer < exit_layer]
            free = [layer for layer in free if layer not in cuts and layer + 1 not in cuts]
        else:
            free = [layer for layer in free[1:] + free[:1] if layer not in cuts]
        dropped[number] = _choose(free, stage.count or 0, owner, number, faults)
    skipped = frozenset(layer for number, stage in drops if stage.visual_only for layer in dropped[number])
    removed = {layer for number, stage in drops if not stage.visual_only for layer in dropped[number]}
    kept = tuple(layer for layer in range(total) if layer not in removed)
    depth = DecoderDepth(kept, skipped, exit_layer, dropped, cuts)
    for layer, number in cuts.items():
        _check_cut(layer, number, depth, faults)
    last_stage = max(
        (n for n, s in enumerate(recipe.stages) if isinstance(s, DropLayersEntry | VisualExitEntry)), default=0
    )
    if not kept:
        faults.add(last_stage, "", "no decoder layer is left")
    elif not any(depth.sees_image(layer) for layer in kept):
        faults.add(last_stage, "", "no decoder layer is left that sees the image")
    elif exit_layer is not None and kept[-1] < exit_layer:
        faults.add(
            last_stage,
            "",
            f"no decoder layer is left from {exit_layer} on, so the visual exit there does nothing",
        )
    return depth


def layer_at(layer: int | float, total: int) -> int:
    """Resolve a layer of `total`, given by number, from the end, or as a share of the depth; it may lie outside."""
    if isinstance(layer, float):
        return min(max(1, round(layer * total)), total - 1)
    return layer + total if layer < 0 else layer


def _cuts(recipe: Recipe, total: int, exit_layer: int | None, faults: Faults) -> dict[int, int]:
    cuts: dict[int, int] = {}
    for number, stage in enumerate(recipe.stages):
        if not isinstance(stage, PruneInDecoderEntry):
            continue
        layer = layer_at(stage.layer, total)
        before = max(cuts, default=0)
        if not 1 <= layer < total:
            faults.add(number, "layer", f"no cut before layer {stage.layer} of {total}; give one from 1 to {total - 1}")
        elif layer <= before:
            faults.add(number, "layer", f"layer {layer} is not behind layer {before} of stages.{cuts[before]}")
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


# Layer lists ------------------------------------------------------------------------------------------------


def listed_layers(
    layers: Iterable[int], total: int, component: str, number: int, key: str, faults: Faults
) -> tuple[int, ...]:
    """Resolve layer numbers, negative ones from the end, to ascending ones; report those not there."""
    found: dict[int, int] = {}
    for layer in layers:
        actual = layer + total if layer < 0 else layer
        if not 0 <= actual < total:
            faults.add(number, key, f"no layer {layer}: the {component} has {total} layers, 0 to {total - 1}")
        elif actual in found:
            faults.add(number, key, f"layers {found[actual]} and {layer} are the same of {total}")
        else:
            found[actual] = layer
    return tuple(sorted(found))


def _claim(layers: tuple[int, ...], owner: dict[int, int], number: int, faults: Faults) -> tuple[int, ...]:
    """Give layers to a stage; report those that an earlier one has."""
    for layer in layers:
        if layer in owner:
            faults.add(number, "layers", f"layer {layer} is dropped by stages.{owner[layer]} already")
    owner.update({layer: number for layer in layers if layer not in owner})
    return layers


def _choose(free: Sequence[int], count: int, owner: dict[int, int], number: int, faults: Faults) -> tuple[int, ...]:
    """Give a stage the first `count` of the layers it may have."""
    if count > len(free):
        faults.add(number, "count", f"cannot drop {count} layers, only {len(free)} are there to choose from")
    return _claim(tuple(sorted(free[:count])), owner, number, faults)
