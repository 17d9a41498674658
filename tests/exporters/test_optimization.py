"""Optimised graphs are those that PyTorch's exporter would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from exporters.graph_spec import GraphSpec
from exporters.writing import export_graph

BATCH = ({0: "batch"},)
ROW = torch.linspace(-1, 1, 64)
ROUNDS = 3


class Layouts(nn.Module):
    """What exports are full of: axes turned about, halves of a row, sizes computed from shapes, equal constants."""

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for _ in range(ROUNDS):
            batch, count, width = values.shape
            heads = values.reshape(batch, count, 4, width // 4).transpose(1, 2).transpose(1, 2)
            left, right = heads[..., : width // 8], heads[..., width // 8 :]
            turned = torch.cat([-right, left], dim=-1).to(torch.float32).reshape(batch, count, width)
            values = (values + 0.0) * 1.0 + turned * ROW.clone()
        return values, values.expand(values.shape), values.unsqueeze(0).unsqueeze(0).squeeze(0)


def spec_of(module: nn.Module, *args: Tensor) -> GraphSpec:
    """All outputs of a module; the first axis of all inputs varies."""
    outputs = [f"output_{number}" for number in range(len(module(*args)))]
    return GraphSpec("graph", module, args, ["values"], outputs, BATCH)


def test_outputs_are_those_of_the_module_under_their_names(tmp_path: Path) -> None:
    values = torch.randn(3, 5, 64)
    spec = spec_of(Layouts(), values)
    export_graph(spec, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == spec.outputs
    for found, wanted in zip(session.run(None, {"values": values.numpy()}), spec.module(values), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_operators_are_those_that_the_exporter_itself_would_write(tmp_path: Path) -> None:
    values = torch.randn(3, 5, 64)
    spec = spec_of(Layouts(), values)
    export_graph(spec, tmp_path / "graph.onnx")
    graph = onnx.load(tmp_path / "graph.onnx").graph
    axes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(spec.module, spec.args, dynamo=True, opset_version=20, dynamic_shapes=axes)
    assert program is not None
    theirs = program.model_proto.graph.node
    assert [node.op_type for node in graph.node] == [node.op_type for node in theirs]
    assert sum(tuple(tensor.dims) == ROW.shape for tensor in graph.initializer) == 1
