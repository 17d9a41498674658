"""What a graph is made of: a module, its example inputs, and the names of what goes in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from vtc.compressed.model import CompressedModel


class SourceModule(NamedTuple):
    """A part of a PyTorch model that a graph is made of.

    Attributes
    ----------
    model : CompressedModel
    module : nn.Module
        What is called where the graph would be run.
    takes : callable
        What the graph is given, tensor by tensor, of what the module is called with.
    """

    model: CompressedModel
    module: nn.Module
    takes: Callable[..., Any] = lambda *args, **kwargs: (args, kwargs)


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes
    ----------
    name : str
        File stem inside the bundle's `onnx` directory, without the precision's suffix.
    module : nn.Module
    args : tuple
        Example inputs, batch 2.
    inputs, outputs : list of str
        Names in the graph; nested arguments are flattened.
    axes : nested like `args`
        For each tensor, axis number to the name of its dynamic dimension.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    axes: tuple[Any, ...] = field(default_factory=tuple)
