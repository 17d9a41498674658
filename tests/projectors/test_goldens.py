"""Projectors give what the authors' code gives, in PyTorch and exported, where nothing resizes or pools."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.projectors.vectors import Vector, vectors

VECTORS = [pytest.param(one, id=one.name) for one in vectors()]
NOT_IN_GRAPHS = {"Resize", "AveragePool", "GridSample", "MaxPool", "NonZero", "Loop", "If"}


class Exported(nn.Module):
    """A projector whose inputs are tensors."""

    def __init__(self, vector: Vector) -> None:
        super().__init__()
        self.projector, self.vector = vector.projector, vector
        if isinstance(vector.own, nn.Module):
            self.own = vector.own

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """What it makes of its inputs."""
        return self.vector.picked(self.projector(self.vector.given(*inputs), self.vector.own))


@pytest.mark.parametrize("vector", VECTORS)
@torch.inference_mode()
def test_it_gives_what_the_authors_code_gives(vector: Vector) -> None:
    made = vector.projector(vector.tokens, vector.own)
    assert made.shape[1] == vector.projector.keep
    torch.testing.assert_close(vector.picked(made), vector.expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("vector", VECTORS)
def test_its_graph_gives_that_too(vector: Vector, tmp_path: Path) -> None:
    path = tmp_path / "projector.onnx"
    with torch.no_grad():
        torch.onnx.export(Exported(vector).eval(), (vector.inputs,), path, dynamo=True, opset_version=20, verbose=False)
    graph = onnx.load(path).graph
    assert not NOT_IN_GRAPHS & {node.op_type for node in graph.node}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, (value.numpy() for value in vector.inputs), strict=True))
    (found,) = session.run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(found), vector.expected, atol=1e-5, rtol=0)
