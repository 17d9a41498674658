"""Exports of one model under many recipes, for tests.

Embeddings, and runs of the same decoder layers, are the same graph whatever the recipe, so each is exported once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import exporters.onnx
from exporters.graphs import EmbedGraph, GraphSpec, SegmentGraph
from exporters.writing import export_graph


@contextmanager
def graphs_in_common(store: Path) -> Iterator[None]:
    """While open, exports of one model take graphs that they share from `store`."""

    def export_once(spec: GraphSpec, path: Path, *, opset: int) -> None:
        module: Any = spec.module
        if isinstance(module, SegmentGraph):
            segment = module.segment
            parts: tuple[Any, ...] = (segment.layers, segment.last, segment.taps, module.dtype, *spec.inputs)
        elif isinstance(module, EmbedGraph):
            parts = (spec.name,)
        else:
            export_graph(spec, path, opset=opset)
            return
        made = store / f"{abs(hash((*parts, opset)))}.onnx"
        if not made.exists():
            export_graph(spec, made, opset=opset)
        shutil.copyfile(made, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters.onnx, "export_graph", export_once)
        yield
