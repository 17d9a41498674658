"""CUDA graphs of a model's prefill, so that its time is the GPU's and not that of launching kernels from Python.

Budgets are fixed, so every prefill of one prompt has the same shapes: the vision encoder and each decoder segment are
recorded the first time, and replayed afterwards. Decoding stays eager: its cache grows with every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from vtc.compressed.model import CompressedModel

WARMUP = 3
"""Runs before the recording, in which libraries choose their kernels."""

Run = Callable[..., Any]
Recording = Callable[[Run, list[Any]], tuple[Callable[[], None], Any]]
"""Given what to run and its inputs: what repeats that run on the same memory, and its outputs."""


def replay_prefill(model: CompressedModel, recording: Recording | None = None) -> None:
    """Make a model's vision encoder and decoder segments replay what they did for inputs of the same shapes.

    Outputs are the same memory each time: those of one prefill are gone with the next.

    Parameters
    ----------
    model : CompressedModel
        On a GPU.
    recording : callable or None
        How a run is recorded; None takes a CUDA graph.
    """
    record = recording or cuda_graph
    model.vision.forward = replayed(model.vision.forward, record, lambda *_: True)
    for segment in model.segments:
        segment.forward = replayed(segment.forward, record, _without_cache)


def _without_cache(hidden: Tensor, mask: Tensor, *_: Any) -> bool:
    return hidden.shape[1] == mask.shape[1]


def replayed(run: Run, record: Recording, when: Callable[..., bool]) -> Run:
    """A function that is run once for inputs of given shapes, and replayed for others of these shapes.

    Parameters
    ----------
    run : callable
        Of tensors, alone and in lists and tuples, and of constants.
    record : callable
    when : callable
        Whether inputs are to be replayed at all.
    """
    recorded: dict[tuple[Any, ...], tuple[list[Any], Callable[[], None], Any]] = {}

    def forward(*args: Any) -> Any:
        if not when(*args):
            return run(*args)
        given, form = tree_flatten(args)
        key = tuple((tuple(each.shape), each.dtype) if isinstance(each, Tensor) else each for each in given)
        if key not in recorded:
            inputs = [each.clone() if isinstance(each, Tensor) else each for each in given]
            recorded[key] = (inputs, *record(lambda held: run(*tree_unflatten(held, form)), inputs))
        inputs, repeat, outputs = recorded[key]
        for held, each in zip(inputs, given, strict=True):
            if isinstance(each, Tensor):
                held.copy_(each)
        repeat()
        return outputs

    return forward


class Constants(TorchFunctionMode):
    """Tensors that a run makes from Python's numbers: noted in a run before the recording, handed out in it.

    A recording may copy nothing from the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[Tensor] = []
        self._left: list[Tensor] | None = None

    def rewind(self) -> None:
        """From here on hand out what was noted, in its order."""
        self._left = list(self._made)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.tensor:
            return func(*args, **(kwargs or {}))
        if self._left is not None:
            return self._left.pop(0)
        self._made.append(func(*args, **(kwargs or {})))
        return self._made[-1]


def cuda_graph(run: Run, inputs: list[Any]) -> tuple[Callable[[], None], Any]:
    """Record a run as a CUDA graph: what replays it, and its outputs."""
    aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARMUP):
            run(inputs)
        with Constants() as constants:
            run(inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    constants.rewind()
    with constants, torch.cuda.graph(graph):
        outputs = run(inputs)

    def replay(_: Constants = constants) -> None:  # which the graph reads
        graph.replay()

    return replay, outputs
