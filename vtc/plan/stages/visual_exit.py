"""`visual_exit` in numbers: no visual token is left from a decoder layer on.

A layer left to calibration is provisionally half the depth.
"""

from __future__ import annotations

from vtc.plan.state import Context, Rules, Step, TokenState
from vtc.recipe.stages import VisualExitEntry


def check(entry: VisualExitEntry, rules: Rules) -> None:
    """Report a second exit."""
    exits = rules.find(lambda stage: stage.exit_before is not None)
    if exits:
        rules.fault("", f"all visual tokens have left at stages.{exits[0]} already")


def step(entry: VisualExitEntry, state: TokenState, context: Context) -> Step:
    """Let all visual tokens leave; stages of earlier decoder layers still see them."""
    layer = context.decoder.exit
    return Step(state, f"before decoder layer {layer}", tokens_out=0, layer=layer)
