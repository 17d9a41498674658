"""Each graph that tests export is exported once: by all tests of all workers, and whatever the recipe it belongs to.

An export is mostly PyTorch tracing the model, a second or two for each layer, and the same layers come up in dozens of
tests. What a graph is made of is told by a fingerprint of everything that its module holds. It errs towards exporting
again: a module that holds what the fingerprint does not know is never shared.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers import PretrainedConfig

import exporters.onnx
from exporters import writing
from exporters.graph_spec import GraphSpec
from exporters.writing import export_graph, external_data
from vtc.compressed.decoder import DecoderSegment
from vtc.models.base import VLMAdapter

Tell = Callable[[bytes], object]

SOURCES = {"exporters", "torch", "transformers", "vtc"}
"""Packages whose code stays as it is while tests run; of a class that a test defines, the name says too little."""
OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}
NOT_IN_GRAPHS = {"_is_hf_initialized", "_name_or_path", "_output_capturing_hooks_installed", "path", "tokenizer"}
"""Attributes that say where something came from, how it was loaded, or that its layers were once looked at."""
OF_IMAGES = {"facts", "pixels", "wanted"}
"""What adapters of one checkpoint differ in that serve other images; of the facts, a decoder segment has its own."""


@contextmanager
def shared_exports(store: Path) -> Iterator[None]:
    """While open, exports take a graph that was exported before from `store`, which processes may have in common."""

    def export_once(spec: GraphSpec, path: Path, *, opset: int) -> None:
        key = fingerprint((spec.module, spec.args, spec.inputs, spec.outputs, spec.axes, opset))
        # Weights are inside the graph or beside it, whichever this says.
        made = None if key is None else store / f"{key}-{writing.EXTERNAL_DATA_BYTES}.onnx"
        if made is not None and made.exists():
            shutil.copyfile(made, path)
            return
        export_graph(spec, path, opset=opset)
        if made is not None and not external_data(path).exists():  # the graph would name its file
            _publish(path, made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters.onnx, "export_graph", export_once)
        # PyTorch parses the source of its 500 translations anew for each graph; they are the same ones all along.
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        # pytest listens to PyTorch's trace log too, and each record of that comes with a stack or a graph in words.
        patch.setattr(torch._logging._internal, "trace_log", logging.Logger("without handlers"))
        yield


def fingerprint(value: object) -> str | None:
    """The same for what makes the same graph; None where that cannot be told."""
    digest = hashlib.sha256()
    try:
        _describe(value, digest.update)
    except _UnknownError:
        return None
    return digest.hexdigest()


class _UnknownError(Exception):
    """Something that may or may not change a graph."""


def _publish(path: Path, made: Path) -> None:
    """Put a copy of a file where other processes look, all of it at once."""
    handle, copy = tempfile.mkstemp(dir=made.parent)
    os.close(handle)
    shutil.copyfile(path, copy)
    os.replace(copy, made)


@functools.singledispatch
def _describe(value: Any, tell: Tell) -> None:
    """Tell all of a value, its type first."""
    if not (is_dataclass(value) and not isinstance(value, type)):
        raise _UnknownError(type(value))
    _name(type(value), tell)
    _describe({field.name: getattr(value, field.name) for field in fields(value)}, tell)


@_describe.register(type(None))
@_describe.register(bool)
@_describe.register(int)
@_describe.register(float)
@_describe.register(str)
@_describe.register(torch.dtype)
@_describe.register(torch.device)
def _(value: Any, tell: Tell) -> None:
    tell(f"{type(value).__name__} {value!r};".encode())


@_describe.register(type)
@_describe.register(FunctionType)
@_describe.register(BuiltinFunctionType)
def _name(value: Any, tell: Tell) -> None:
    module = getattr(value, "__module__", None) or ""
    if "<" in value.__qualname__ or module.partition(".")[0] not in SOURCES:
        raise _UnknownError(value)
    tell(f"{module}.{value.__qualname__};".encode())


@_describe.register
def _(value: functools.partial, tell: Tell) -> None:  # type: ignore[type-arg]
    _describe((value.func, value.args, value.keywords), tell)


@_describe.register(list)
@_describe.register(tuple)
def _(value: Any, tell: Tell) -> None:
    tell(f"{len(value)} in a row:".encode())
    for item in value:
        _describe(item, tell)


@_describe.register(set)
@_describe.register(frozenset)
def _(value: Any, tell: Tell) -> None:
    parts = [fingerprint(item) for item in value]
    if None in parts:
        raise _UnknownError(value)
    _describe(sorted(map(str, parts)), tell)


@_describe.register(Mapping)
def _(value: Any, tell: Tell) -> None:
    tell(f"{len(value)} pairs:".encode())
    for key, item in value.items():
        _describe(key, tell)
        _describe(item, tell)


@_describe.register(BaseModel)
def _(value: BaseModel, tell: Tell) -> None:
    _name(type(value), tell)
    _describe(dict(value), tell)


@_describe.register(Tensor)
def _(value: Tensor, tell: Tell) -> None:
    tell(f"tensor {value.dtype} {tuple(value.shape)} {value.stride()}:".encode())
    tell(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


@_describe.register(nn.Module)
def _describe_module(value: nn.Module, tell: Tell, without: AbstractSet[str] = frozenset()) -> None:
    _name(type(value), tell)
    _describe(_attributes(value, OF_EVERY_MODULE | without), tell)
    _describe(dict(value.named_parameters(recurse=False)), tell)
    _describe(dict(value.named_buffers(recurse=False)), tell)
    _describe(dict(value.named_children()), tell)


@_describe.register(DecoderSegment)
def _(value: DecoderSegment, tell: Tell) -> None:
    """Whatever images are served: all that a decoder knows of them comes in."""
    _describe_module(value, tell, {"adapter"})
    _describe_adapter(value.adapter, tell, OF_IMAGES)
    _describe(value.adapter.facts.decoder, tell)


@_describe.register(VLMAdapter)
def _describe_adapter(value: VLMAdapter, tell: Tell, without: AbstractSet[str] = frozenset()) -> None:
    """Its model is told by weights and configuration: modules outside a graph's own differ in nothing else."""
    model = value.model
    _name(type(value), tell)
    _describe(_attributes(value, {"model"} | without), tell)
    _name(type(model), tell)
    _describe((model.config, dict(model.named_parameters()), dict(model.named_buffers())), tell)


@_describe.register(PretrainedConfig)
def _(value: PretrainedConfig, tell: Tell) -> None:
    _name(type(value), tell)
    _describe(_attributes(value), tell)


def _attributes(value: object, without: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """Attributes by name; what was worked out from the others is not there before it is asked for."""
    return {
        name: item
        for name, item in vars(value).items()
        if name not in NOT_IN_GRAPHS | without
        and not isinstance(getattr(type(value), name, None), functools.cached_property)
    }
