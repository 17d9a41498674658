"""A vision tower with a selector in it, rewritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import exporters.onnx
from exporters.graphs import graph_specs
from exporters.rewriting import Form, rewrite
from exporters.writing import DEFAULT_OPSET
from tests.tiny import RECIPES, compressed
from vtc.models.base import VLMAdapter


@pytest.fixture(scope="module")
def tower(adapter: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tower of 2 layers that are computed, of which the last one's attention of the CLS token ranks tokens."""
    path = tmp_path_factory.mktemp("tower") / "vision_encoder.onnx"
    spec = graph_specs([compressed(adapter, *RECIPES["cls"])], torch.float32)[0]
    exporters.onnx.export_graph(spec, path, opset=DEFAULT_OPSET)
    return path


@pytest.mark.parametrize(("form", "kind"), [("ort", "MultiHeadAttention"), ("opset23", "Attention")])
def test_a_tower_keeps_the_same_tokens(form: Form, kind: str, tower: Path, tmp_path: Path) -> None:
    model = ir.load(tower)
    maps = sum(node.op_type == "Softmax" for node in model.graph)
    rewritten = rewrite(model, form, "vision_encoder")
    assert rewritten.fused == {kind: 2}
    assert not rewritten.left
    assert sum(node.op_type == "Softmax" for node in model.graph) == maps - 2 == 1
    ir.save(model, tmp_path / "rewritten.onnx")
    pixels = np.random.default_rng(0).standard_normal((3, 3, 56, 56)).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"pixel_values": pixels})
        for path in (tower, tmp_path / "rewritten.onnx")
    )
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5 * np.abs(expected[0]).max())
