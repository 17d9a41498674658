"""`visual_exit` with ``layer: auto``: the earliest layer at which nothing is lost."""

from __future__ import annotations

from vtc.calibrate.measuring import Measuring
from vtc.recipe import Recipe
from vtc.recipe.stages import VisualExitEntry

EXIT_AGREEMENT = 0.99
"""A visual exit is early enough when this share of the original's tokens stays the most likely one."""
EXIT_LOSS = 1.03
"""DyVTE's second condition: the answers' loss stays below this multiple of the original's."""


def choose(entry: VisualExitEntry, before: Recipe, measuring: Measuring) -> int:
    """The earliest layer, going down from the last, at which the most likely tokens still agree with the original's.

    The criterion of Visual Tokens Withdrawal (Lin et al. 2024, arXiv 2405.05803), with agreement in place of a KL
    threshold, which has no natural size; or that of DyVTE's labels (arXiv 2411.19628).
    """
    plan, words = measuring.model(before).plan, "calibrating the exit layer"
    earliest = plan.decoder_layers[-1]
    # Tokens that have left choose nothing any more, so an exit comes after every cut.
    candidates = [layer for layer in plan.decoder_layers[1:] if layer > max(plan.cut_layers, default=0)]
    for done, layer in enumerate(reversed(candidates)):
        measuring.report(words, done, len(candidates))
        found = measuring.compared(before, entry.model_copy(update={"layer": layer, "criterion": "agreement"}))
        grown = entry.criterion == "dyvte" and found.loss >= EXIT_LOSS * found.original_loss
        if found.agreement < EXIT_AGREEMENT or grown:
            break
        earliest = layer
    measuring.report(words, len(candidates), len(candidates))
    return earliest
