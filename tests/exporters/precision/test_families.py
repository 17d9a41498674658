"""Every family's vision tower in whole numbers: proved, and computed as such."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.onnx import VALUES, export
from tests.exporters.export_request import request
from tests.tiny import image
from vtc.models import load_adapter
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.runtime.vlm import VLM

ALIKE = {"idefics3", "llava_onevision", "paligemma", "qwen2_vl", "qwen3_vl_moe"}
"""Families whose towers others have too."""
GREEDY = "gemma3"
"""The family on which a selector computes beside the tower, and may choose otherwise in another runtime."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.full] if name in ALIKE else []) for name in sorted(TINY_FAMILIES)],
)
def test_vision_towers_multiply_whole_numbers(family: str, tmp_path: Path) -> None:
    # The tower is what is looked at; of the decoder, as little as there can be.
    layers = 2 if family.startswith("qwen3_vl") else 1
    adapter = load_adapter(write_tiny(family, tmp_path / "model", encoder_layers=2, decoder_layers=layers))
    stage = {"kind": "prune", "keep": 0.5, "selector": "cdpruner" if family == GREEDY else "uniform"}
    export(request(adapter, stage, precisions=("q4-static",)), tmp_path / "b")
    notes = json.loads((tmp_path / "b" / VALUES).read_text())["q4-static"]["graphs"]
    graph = onnx.load(tmp_path / "b" / "onnx" / "vision_encoder_q4_static.onnx").graph
    of_weights = {tensor.name for tensor in graph.initializer if tensor.name.endswith("/numbers")}
    made = {node.output[0]: node for node in graph.node}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    whole = [
        node
        for node in products
        if all(name in made and made[name].op_type == "DequantizeLinear" for name in node.input[:2])
    ]
    assert len(whole) >= notes["vision_encoder"]["weights"] > 4
    assert len(of_weights) >= len(whole)
    pytest.importorskip("openvino")
    asked = [[image(0)]], [adapter.chat("what is it ?")]
    runtimes = [VLM.load(tmp_path / "b", backend=name, precision="q4-static") for name in ("onnxruntime", "openvino")]
    features, kept = zip(*(one.encode(*asked) for one in runtimes), strict=True)
    assert features[0].shape == features[1].shape
    assert family == GREEDY or np.array_equal(*kept)
    if np.array_equal(*kept):
        assert np.abs(features[0] - features[1]).mean() < 0.05 * np.abs(features[0]).mean()
