"""What is known of tokens, taken along where stages in the decoder drop some of them and bring some back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtc.compressed.decoder import GatherTokens, MergeTokens
from vtc.compressed.model import CompressedModel
from vtc.stages.base import CutStage
from vtc.visual_tokens import gather_tokens

Enter = Callable[[Tensor, Tensor, Tensor], None]
"""Called with values (B, S, C), attention mask (B, S) and positions ([3,] B, S) of tokens that enter a segment."""


@contextmanager
def following(
    model: CompressedModel, enter: Enter, leave: Callable[[Tensor], Tensor]
) -> Iterator[Callable[[Tensor], None]]:
    """While open, take values along with the tokens of each prefill.

    Parameters
    ----------
    model : CompressedModel
    enter : callable
        Called before each segment runs.
    leave : callable
        Called with the values after it; gives those that go on.

    Yields
    ------
    callable
        To be given the values (B, S, C) of a batch before its prefill.
    """
    values: list[Tensor] = []
    whole: list[Tensor] = []

    def entering(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        enter(values[0], inputs[1], inputs[2])

    def leaving(*_: Any) -> None:
        values[0] = leave(values[0])

    def handed(stage: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(stage, GatherTokens):
            whole[:] = values
            values[0] = gather_tokens(values[0], inputs[1])
        elif isinstance(stage, MergeTokens):
            values[0] = gather_tokens(torch.cat([whole[0], values[0]], dim=1), inputs[2])
        elif isinstance(stage, CutStage):
            values[0] = gather_tokens(values[0], inputs[3].sources(inputs[0].shape[1], output[2]))

    hooks = [segment.register_forward_pre_hook(entering) for segment in model.segments]
    hooks += [segment.register_forward_hook(leaving) for segment in model.segments]
    hooks += [handoff.register_forward_hook(handed) for handoff in model.handoffs]
    try:
        yield lambda given: values.__setitem__(slice(None), [given])
    finally:
        for hook in hooks:
            hook.remove()
