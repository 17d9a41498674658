"""Graphs that a runtime could not take are refused, with the node and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from exporters.lint import lint


def write(path: Path, nodes: list[object], opset: int = 20, domain: str = "", shape: object = "n") -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, shape])],
    )
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    save(helper.make_model(graph, opset_imports=imports), path)
    return path


def test_clean_graph(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape=4)
    assert lint(path, constant_tokens=True) == []


@pytest.mark.parametrize("operator", ["NonZero", "Loop", "If", "DFT", "Unique", "Attention", "RMSNormalization"])
def test_operator_is_named_with_a_remedy(tmp_path: Path, operator: str) -> None:
    path = write(tmp_path / "g.onnx", [helper.make_node(operator, ["x"], ["y"], name="culprit")])
    (finding,) = lint(path)
    assert f"{operator} culprit" in str(finding)
    assert len(finding.problem) > 10


def test_newer_opset(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], opset=23)
    assert "opset 23 is above 20" in str(lint(path)[0])


def test_operators_of_another_vendor(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [helper.make_node("Fused", ["x"], ["y"], domain="com.acme")], domain="com.acme")
    assert "com.acme" in str(lint(path)[0])


def test_dynamic_number_of_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape="kept")
    assert "constant number of tokens" in str(lint(path, constant_tokens=True)[0])
