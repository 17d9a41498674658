"""What goes into linear layers while the PyTorch model answers samples: what their weights are rounded by.

The whole compressed model runs, so that the decoder sees images and text at the positions that pruning leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.compressed.model import CompressedModel
from vtc.data.samples import ANSWER_TOKENS, Sample
from vtc.progress import Report, silent

MOST_BYTES = 2**30
"""Of products that are held at once. The model runs once for each part of the layers that is as large as that."""
MOST_ROWS = 128
"""Of inputs that wait to be added."""


def products(
    models: Sequence[CompressedModel],
    samples: Sequence[Sample],
    layers: Mapping[str, nn.Linear],
    report: Report = silent,
) -> Iterator[dict[str, Tensor]]:
    """For some layers after others, the sum of x x^T over their inputs x on samples with the model's own answers.

    Parameters
    ----------
    models : sequence of CompressedModel
        Of the same adapter.
    samples : sequence of Sample
    layers : mapping of name to nn.Linear
    report : callable

    Yields
    ------
    dict of name to Tensor of shape (inputs, inputs), float32
        Of what no sample reaches, zeros.
    """
    parts = _parts(layers)
    runs = [(model, sample) for model in models for sample in samples]
    answers = [model.generate([sample.images], [sample.prompt], ANSWER_TOKENS)[0].token_ids for model, sample in runs]
    for number, names in enumerate(parts):
        found = {name: torch.zeros([layers[name].in_features] * 2) for name in names}
        sums = [_Sum(total) for total in found.values()]
        with ExitStack() as hooked:
            for name, one in zip(names, sums, strict=True):
                _hook(hooked, models, layers[name], one)
            for done, ((model, sample), answer) in enumerate(zip(runs, answers, strict=True)):
                report("calibrating", number * len(runs) + done, len(parts) * len(runs))
                ends = [*answer, model.adapter.eos_token_ids[0], model.adapter.pad_token_id]
                model.score([sample.images], [sample.prompt], [ends])
        for one in sums:
            one.finish()
        yield found
    report("calibrating", len(parts) * len(runs), len(parts) * len(runs))


def _parts(layers: Mapping[str, nn.Linear]) -> list[list[str]]:
    """Names of layers, in order, in parts of no more than :data:`MOST_BYTES`."""
    parts: list[list[str]] = []
    room = 0
    for name, layer in layers.items():
        need = 4 * layer.in_features**2
        if not parts or need > room:
            parts.append([])
            room = MOST_BYTES
        parts[-1].append(name)
        room -= need
    return parts


def ranges(
    models: Sequence[CompressedModel],
    samples: Sequence[Sample],
    layers: Mapping[str, nn.Linear],
    report: Report = silent,
) -> dict[str, float]:
    """The largest magnitude of each layer's inputs, on samples with the first tokens of the model's own answers.

    Parameters
    ----------
    models, samples, layers, report : as of :func:`products`

    Returns
    -------
    dict of name to float
        Without layers that no sample reaches.
    """
    found: dict[str, float] = {}
    with ExitStack() as hooked:
        for name, layer in layers.items():

            def goes_in(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                found[name] = max(found.get(name, 0.0), float(args[0].abs().max()))

            hooked.callback(layer.register_forward_pre_hook(goes_in).remove)
        for number, model in enumerate(models):
            for done, sample in enumerate(samples):
                report("measuring activations", number * len(samples) + done, len(models) * len(samples))
                model.generate([sample.images], [sample.prompt], ANSWER_TOKENS)
    report("measuring activations", len(models) * len(samples), len(models) * len(samples))
    return found


class _Sum:
    """Adds x x^T of rows x to a total (E, E), many at a time: each time it goes through all of the total."""

    def __init__(self, total: Tensor) -> None:
        self.total = total
        self.waiting: list[Tensor] = []

    def add(self, states: Tensor) -> None:
        """Take in states (..., E)."""
        self.waiting.append(states.detach().reshape(-1, states.shape[-1]).float().cpu())
        if sum(map(len, self.waiting)) >= MOST_ROWS:
            self.finish()

    def finish(self) -> None:
        """Add what waits."""
        if self.waiting:
            rows = torch.cat(self.waiting)
            self.total.addmm_(rows.T, rows)
            self.waiting.clear()


def _hook(hooked: ExitStack, models: Sequence[CompressedModel], layer: nn.Module, found: _Sum) -> None:
    def goes_in(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.add(args[0])

    if layer is not models[0].adapter.head:
        hooked.callback(layer.register_forward_pre_hook(goes_in).remove)
        return
    for last in {id(model.segments[-1]): model.segments[-1] for model in models}.values():
        segment: Any = last

        def comes_out(states: Tensor, norm: nn.Module = segment.norm) -> None:
            # The head is only asked about the last token, too few to tell what its inputs are like.
            found.add(norm(states))

        hooked.callback(on_last_layer(segment, comes_out).remove)


def on_last_layer(segment: Any, told: Callable[[Tensor], None]) -> RemovableHandle:
    """Have somebody told what comes out of a decoder segment's last layer, (B, S, E), until the handle is removed."""

    def comes_out(_: nn.Module, __: Any, output: Any) -> None:
        told(output[0] if isinstance(output, tuple) else output)

    handle: RemovableHandle = segment.blocks[-1].register_forward_hook(comes_out)
    return handle
