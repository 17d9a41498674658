"""CUDA graphs of a model, so that its time is the GPU's and not that of launching kernels from Python.

Budgets are fixed, so every prefill of one prompt has the same shapes: the vision encoder and each decoder segment are
recorded the first time, and replayed afterwards. Decoding has the same shapes at every token once the cache has the
length that it will have at the end: one recording is a whole step, embedding and choice of the token included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from vtc.compressed.decoder import DecoderSegment, FixedCache
from vtc.compressed.model import CompressedModel, DecoderState

WARMUP = 3
"""Runs before the recording, in which libraries choose their kernels."""

Run = Callable[..., Any]
Recording = Callable[[Run, list[Any]], tuple[Callable[[], None], Any]]
"""Given what to run and its inputs: what repeats that run on the same memory, and its outputs."""


@contextmanager
def replay_prefill(model: CompressedModel, recording: Recording | None = None) -> Iterator[None]:
    """For a while, have the vision encoder and decoder segments replay what they did for inputs of the same shapes.

    Outputs are the same memory each time: those of one prefill are gone with the next.

    Parameters
    ----------
    model : CompressedModel
        On a GPU.
    recording : callable or None
        How a run is recorded; None takes a CUDA graph.
    """
    record = recording or cuda_graph
    parts: list[tuple[Any, Callable[..., bool]]] = [(model.vision, lambda *_: True)]
    parts += [(segment, _without_cache) for segment in model.segments]
    for part, when in parts:
        part.forward = replayed(part.forward, record, when)
    try:
        yield
    finally:
        for part, _ in parts:
            del part.forward  # the class's own again


Steps = Callable[[Tensor, DecoderState], Callable[[], Tensor]]
"""Given the first token (B, 1) and what prefill left: what makes the next greedy token (B, 1), again and again."""


def eager_steps(model: CompressedModel) -> Steps:
    """Decoding as the model itself does it."""

    def begin(token: Tensor, state: DecoderState) -> Callable[[], Tensor]:
        def step() -> Tensor:
            nonlocal token
            token = model.decode(token, state)[:, -1].argmax(dim=-1, keepdim=True)
            return token

        return step

    return begin


def replayed_steps(model: CompressedModel, most: int, recording: Recording | None = None) -> Steps:
    """Decoding that is recorded once for each length of prompt, and replayed for every token.

    The token is the same memory each time; more steps than `most` are an IndexError.

    Parameters
    ----------
    model : CompressedModel
    most : int
        Steps that are taken after one prompt.
    recording : callable or None
        As for :func:`replay_prefill`.

    Raises
    ------
    ValueError
        If the decoder has sliding windows or attends in both directions, which is not done here.
    """
    decoder = model.adapter.facts.decoder
    if decoder.window or decoder.bidirectional != "none" or decoder.position_axes != 1:
        raise ValueError("decoding is replayed for plain causal decoders only")
    recorded: dict[tuple[int, ...], tuple[_FixedSteps, Callable[[], None]]] = {}

    def begin(token: Tensor, state: DecoderState) -> Callable[[], Tensor]:
        key = tuple(mask.shape[1] for mask in state.masks)
        if key not in recorded:
            steps = _FixedSteps(model, state, max(most, WARMUP + 2))  # recording takes some itself
            steps.fill(token, state)
            recorded[key] = steps, (recording or cuda_graph)(lambda _: steps.advance(), [])[0]
        steps, repeat = recorded[key]
        steps.fill(token, state)
        taken = 0

        def step() -> Tensor:
            nonlocal taken
            if taken == most:
                raise IndexError(f"there is room for {most} steps")
            taken += 1
            repeat()
            return steps.token

        return step

    return begin


class _FixedSteps:
    """Memory of a decoding of fixed length, and a step in it that nothing on the host has a part in."""

    def __init__(self, model: CompressedModel, state: DecoderState, most: int) -> None:
        self.model = model
        batch = state.following.shape[0]
        self.token = state.following.new_zeros(batch, 1)
        self.following = torch.zeros_like(state.following)
        self.masks = [mask.new_zeros(batch, mask.shape[1] + most) for mask in state.masks]
        self.places = [mask.new_zeros(1) for mask in state.masks]
        self.caches = [
            FixedCache(segment.layers, [(_longer(keys, most), _longer(values, most)) for keys, values in past], place)
            for segment, past, place in zip(self._segments, state.past, self.places, strict=True)
        ]

    @property
    def _segments(self) -> list[DecoderSegment]:
        return cast(list[DecoderSegment], list(self.model.segments))

    def fill(self, token: Tensor, state: DecoderState) -> None:
        """Start after a prefill."""
        self.token.copy_(token)
        self.following.copy_(state.following)
        for mask, place, cache, given, past in zip(
            self.masks, self.places, self.caches, state.masks, state.past, strict=True
        ):
            length = given.shape[1]
            mask.zero_()
            mask[:, :length] = given
            place.fill_(length)
            for held, layer in zip(cache.entries.values(), past, strict=True):
                for longer, values in zip(held, layer, strict=True):
                    longer[:, :, :length] = values

    def advance(self) -> None:
        """One token more."""
        hidden: Tensor = self.model.embed_tokens(self.token)
        for segment, mask, place, cache in zip(self._segments, self.masks, self.places, self.caches, strict=True):
            mask.index_fill_(1, place, 1)
            hidden, _, _ = segment(hidden, mask, self.following[:, None], cache)
            place.add_(1)
        self.token.copy_(hidden[:, -1].argmax(dim=-1, keepdim=True))
        self.following.add_(1)


def _longer(values: Tensor, most: int) -> Tensor:
    return values.new_zeros(*values.shape[:2], values.shape[2] + most, values.shape[3])


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


def run_again(run: Run, inputs: list[Any]) -> tuple[Callable[[], None], Any]:
    """Stand in for a CUDA graph on any device: the same memory comes in and goes out, and nothing is faster."""
    values, form = tree_flatten(run(inputs))
    held = [value.clone() if isinstance(value, Tensor) else value for value in values]

    def repeat() -> None:
        for mine, again in zip(held, tree_flatten(run(inputs))[0], strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(again)

    return repeat, tree_unflatten(held, form)
