"""PyTorch models that compute what a quantised bundle should: what it is compared with.

A bundle in 4 bits is not close to the model, and need not be; it has to be what 4 bits make of the model. The
fake-quantised model has the weights that the stored numbers stand for, the others as the base has them, and rounds what
goes into its layers where the bundle does; but it computes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exporters.copies import DTYPES, cast_copy, cast_weights
from exporters.precision import Precision, Stored
from exporters.precision.small import LARGEST, input_scale
from exporters.precision.weights import Chosen
from vtc.compressed.model import CompressedModel


def fake_quantised(
    models: Sequence[CompressedModel],
    precision: Precision,
    weights: Mapping[str, Chosen],
    reached: Mapping[str, float],
) -> Sequence[CompressedModel]:
    """The models themselves, or copies in float32 that compute what a quantised precision should.

    Parameters
    ----------
    models : sequence of CompressedModel
    precision : Precision
    weights : mapping of name to Chosen
        Of a module, or of a parameter of experts.
    reached : mapping of module name to float
        Of layers whose input is rounded, its largest magnitude.
    """
    if precision.stored is None:
        return models
    copies = cast_copy(models, DTYPES[precision.base])
    cast_weights(copies, torch.float32)
    for adapter in {id(one.adapter): one.adapter for one in copies}.values():
        modules = dict(adapter.model.named_modules())
        for name, chosen in weights.items():
            owner, kind = (name, "weight") if name in modules else name.rsplit(".", 1)  # experts' matrices are stacked
            module: Any = modules[owner]
            values = torch.from_numpy(chosen.small.values()).view(getattr(module, kind).shape)
            # In a parameter of its own: head and embedding may be one, and are not stored as one.
            setattr(module, kind, nn.Parameter(values, requires_grad=False))
            if name in reached:
                module.register_forward_pre_hook(_Rounding(precision.rounds_to, reached[name]))
    return copies


class _Rounding:
    """Rounds what goes into a layer, as ``QuantizeLinear`` does."""

    def __init__(self, stored: Stored, reached: float) -> None:
        self.largest = LARGEST[stored]
        self.scale = input_scale(reached, stored)
        self.float8 = stored == "fp8"

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        value: Tensor = args[0]
        numbers = (value / self.scale).clamp(-self.largest, self.largest)
        numbers = numbers.to(torch.float8_e4m3fn).to(value.dtype) if self.float8 else torch.round(numbers)
        return (numbers * self.scale, *args[1:])
