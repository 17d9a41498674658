"""Graphs that a runtime could not take are refused, with the node and what to do; mended ones are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, load, numpy_helper, save

from exporters.lint import Finding, check_bundle, lint, summary
from exporters.targets import TARGETS, target
from vtc.bundle.facts import Variant
from vtc.bundle.manifest import FileEntry, Manifest
from vtc.errors import BundleError, InputError

ORIN = target("jetson-orin-jp6")
node = helper.make_node


def constant(name: str, values: Any, dtype: Any = np.int64) -> TensorProto:
    """An initialiser."""
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def four_bit(name: str, kind: int = TensorProto.INT4) -> TensorProto:
    """Weights (4, 4) of four bits each."""
    return TensorProto(name=name, data_type=kind, dims=[4, 4], raw_data=bytes(8))


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    tensors: Sequence[TensorProto] = (),
    *,
    opset: int = 20,
    domain: str = "",
    shape: object = 4,
    kind: int = TensorProto.FLOAT,
    inputs: dict[str, int] | None = None,
) -> Path:
    """A graph from x (1, 4) to y (1, shape)."""
    given = {"x": kind, **(inputs or {})}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, given[name], [1, 4] if name == "x" else [1]) for name in given],
        [helper.make_tensor_value_info("y", kind, [1, shape])],
        list(tensors),
    )
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    save(helper.make_model(graph, opset_imports=imports), path)
    return path


def only(findings: Sequence[Finding], place: str, *words: str) -> None:
    """There is one finding, at a place, that says something."""
    (finding,) = findings
    assert finding.node == place
    for word in words:
        assert word in finding.problem


def topk(k: int | str, **attributes: Any) -> NodeProto:
    return node("TopK", ["x", "k" if isinstance(k, int) else k], ["v", "y"], name="rank", **attributes)


def test_clean_graph(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("Relu", ["x"], ["y"])])
    assert lint(path, constant_tokens=True) == []
    assert all(lint(path, target=one) == [] for one in TARGETS)


@pytest.mark.parametrize("operator", ["NonZero", "Loop", "If", "DFT", "Unique"])
@pytest.mark.parametrize("named", [None, *TARGETS], ids=lambda one: one.name if one else "none")
def test_shapes_from_data_are_refused_whatever_it_is_for(tmp_path: Path, operator: str, named: Any) -> None:
    path = write(tmp_path / "g.onnx", [node(operator, ["x"], ["y"], name="culprit")])
    findings = lint(path, target=named)
    only(findings, f"{operator} culprit", "instead" if operator == "NonZero" else "; ")


@pytest.mark.parametrize("operator", ["Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"])
def test_operators_newer_than_a_target(tmp_path: Path, operator: str) -> None:
    path = write(tmp_path / "g.onnx", [node(operator, ["x"], ["y"], name="fused")], opset=20)
    for findings in (lint(path), lint(path, target=ORIN)):
        only(findings, f"{operator} fused", operator, "decompose it into")
    assert "jetson-orin-jp6 (TensorRT 10.3)" in lint(path, target=ORIN)[0].problem
    assert lint(path, target=target("jetson-orin-jp7")) == []


def test_node_without_a_name_is_called_by_its_result(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("NonZero", ["x"], ["y"])])
    only(lint(path), "NonZero -> y")


def test_node_in_the_body_of_another(tmp_path: Path) -> None:
    body = helper.make_graph(
        [topk("k")],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 4])],
    )
    branch = node("If", ["c"], ["z"], name="choice", then_branch=body, else_branch=body)
    path = write(tmp_path / "g.onnx", [branch], [constant("k", [4000])], inputs={"c": TensorProto.BOOL})
    places = {finding.node for finding in lint(path, target=ORIN)}
    assert places == {"If choice", "If choice/then_branch/TopK rank", "If choice/else_branch/TopK rank"}


@pytest.mark.parametrize(("opset", "named", "ceiling"), [(25, "jetson-orin-jp7", 24), (21, "jetson-orin-jp6", 20)])
def test_newer_opset(tmp_path: Path, opset: int, named: str, ceiling: int) -> None:
    path = write(tmp_path / "g.onnx", [node("Relu", ["x"], ["y"])], opset=opset)
    only(lint(path, target=target(named)), "graph", f"opset {opset} is above {ceiling}", f"--opset {ceiling}")
    path = write(tmp_path / "g.onnx", [node("Relu", ["x"], ["y"])], opset=ceiling)
    assert lint(path, target=target(named)) == []


def test_opset_25_is_for_no_target(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("Relu", ["x"], ["y"])], opset=25)
    assert all("opset 25 is above" in lint(path, target=one)[0].problem for one in TARGETS)
    assert "opset 25 is above 20; export with --opset 20" in lint(path)[0].problem


def test_operators_of_another_vendor(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("Fused", ["x"], ["y"], name="f", domain="com.acme")], domain="com.acme")
    only(lint(path), "Fused f", "domain com.acme")


def test_dynamic_number_of_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("Relu", ["x"], ["y"])], shape="kept")
    only(lint(path, constant_tokens=True), "output y", "constant number of tokens")


def test_k_that_is_an_input(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [topk("k")], inputs={"k": TensorProto.INT64})
    only(lint(path), "TopK rank", "K (k) is an input of the graph", "make it a constant")


def test_k_whose_default_may_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [topk("k")], [constant("k", [2])], inputs={"k": TensorProto.INT64})
    only(lint(path), "TopK rank", "an input of the graph")


def test_k_that_is_computed(tmp_path: Path) -> None:
    nodes = [node("Shape", ["x"], ["s"], name="length"), node("Slice", ["s", "a", "b"], ["k"], name="cut"), topk("k")]
    path = write(tmp_path / "g.onnx", nodes, [constant("a", [1]), constant("b", [2])])
    only(lint(path), "TopK rank", "K (k) is computed by Slice cut")


@pytest.mark.parametrize("k", [3840, 3841, 4000])
@pytest.mark.parametrize("through", [[], ["Cast"], ["Identity", "Unsqueeze"], ["Reshape"], ["Constant"]])
def test_k_of_what_is_constant_after_all(tmp_path: Path, k: int, through: list[str]) -> None:
    tensors = [constant("k0", [k]), constant("shape", [1])]
    if through == ["Constant"]:
        nodes, tensors = [node("Constant", [], ["k1"], value_ints=[k])], []
    else:
        more = {"Cast": {"to": TensorProto.INT64}}
        nodes = [
            node(
                kind,
                [f"k{at}", "shape"][: 2 if kind in ("Reshape", "Unsqueeze") else 1],
                [f"k{at + 1}"],
                **more.get(kind, {}),
            )
            for at, kind in enumerate(through)
        ]
    path = write(tmp_path / "g.onnx", [*nodes, topk(f"k{len(nodes)}")], tensors)
    for one in TARGETS:
        findings = lint(path, target=one)
        if k <= 3840:
            assert findings == []
        else:
            only(findings, "TopK rank", f"K is {k}, and at most 3840", "keep fewer")
    assert lint(path) == []  # ONNX Runtime sets no limit


def test_topk_that_does_not_sort(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [topk(2, sorted=0)], [constant("k", [2])])
    for named in (None, *TARGETS):
        only(lint(path, target=named), "TopK rank", "set sorted to 1")
    assert lint(write(tmp_path / "g.onnx", [topk(2, sorted=1)], [constant("k", [2])])) == []


@pytest.mark.parametrize(
    ("kind", "refused"), [(TensorProto.INT64, True), (TensorProto.INT32, True), (TensorProto.FLOAT, False)]
)
def test_sums_of_integers(tmp_path: Path, kind: int, refused: bool) -> None:
    nodes = [node("CumSum", ["x", "axis"], ["y"], name="count")]
    path = write(tmp_path / "g.onnx", nodes, [constant("axis", 1)], kind=kind)
    for named in (None, *TARGETS):
        findings = lint(path, target=named)
        if refused:
            only(findings, "CumSum count", f"sums {TensorProto.DataType.Name(kind)}", "cast to float32")
        else:
            assert findings == []


@pytest.mark.parametrize(
    ("before", "refused"),
    [
        ([node("Cast", ["x"], ["i"], to=TensorProto.INT64)], True),
        ([node("Cast", ["x"], ["h"], to=TensorProto.INT64), node("Neg", ["h"], ["i"])], True),
        ([node("Greater", ["x", "x"], ["h"]), node("Where", ["h", "n", "n"], ["i"])], True),
        ([node("TopK", ["x", "k"], ["v", "i"])], True),
        ([node("TopK", ["x", "k"], ["i", "v"])], False),
        ([node("Cast", ["n"], ["i"], to=TensorProto.FLOAT)], False),
    ],
)
def test_types_are_followed_through_the_graph(tmp_path: Path, before: list[NodeProto], refused: bool) -> None:
    nodes = [*before, node("CumSum", ["i", "axis"], ["z"], name="count")]
    path = write(tmp_path / "g.onnx", nodes, [constant("axis", 1), constant("n", [[1, 2]]), constant("k", [2])])
    findings = lint(path)
    assert bool(findings) == refused
    assert not refused or findings[0].node == "CumSum count"


def test_axis_that_is_computed(tmp_path: Path) -> None:
    total = node("ReduceSum", ["x", "axes"], ["y"], name="total")
    path = write(tmp_path / "g.onnx", [total], inputs={"axes": TensorProto.INT64})
    only(lint(path, target=ORIN), "ReduceSum total", "input axes is computed", "make it a constant")
    assert lint(write(tmp_path / "g.onnx", [total], [constant("axes", [1])]), target=ORIN) == []


def test_einsum_with_an_ellipsis(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("Einsum", ["x", "x"], ["y"], name="mix", equation="...i,...i->...i")])
    for findings in (lint(path), lint(path, target=ORIN)):
        only(findings, "Einsum mix", "'...i,...i->...i' has an ellipsis", "name every axis")
    assert lint(path, target=target("rtx")) == []
    path = write(tmp_path / "g.onnx", [node("Einsum", ["x", "x"], ["y"], equation="bi,bi->bi")])
    assert lint(path, target=ORIN) == []


@pytest.mark.parametrize("operator", ["ScatterElements", "ScatterND"])
def test_scatter_with_a_reduction(tmp_path: Path, operator: str) -> None:
    adding = node(operator, ["x", "i", "u"], ["y"], name="add", reduction="add")
    tensors = [constant("i", [[1]]), constant("u", [[1.0]], np.float32)]
    path = write(tmp_path / "g.onnx", [adding], tensors)
    only(lint(path, target=target("rtx")), f"{operator} add", "reduction 'add'", "one-hot")
    assert bool(lint(path, target=ORIN)) == (operator == "ScatterND")
    path = write(tmp_path / "g.onnx", [node(operator, ["x", "i", "u"], ["y"], reduction="none")], tensors)
    assert lint(path, target=target("rtx")) == []


def quantised(weights: TensorProto, *zero_point: TensorProto) -> tuple[list[NodeProto], list[TensorProto]]:
    """A MatMul with quantised weights (4, 4)."""
    inputs = [weights.name, "scale", *(one.name for one in zero_point)]
    nodes = [node("DequantizeLinear", inputs, ["d"], name="weights", axis=1), node("MatMul", ["x", "d"], ["y"])]
    return nodes, [weights, constant("scale", np.ones(4), np.float32), *zero_point]


def test_symmetric_weights(tmp_path: Path) -> None:
    weights = constant("w", np.ones((4, 4)), np.int8)
    for zeros in ([], [constant("z", np.zeros(4), np.int8)]):
        path = write(tmp_path / "g.onnx", *quantised(weights, *zeros))
        assert all(lint(path, target=one) == [] for one in TARGETS)


def test_weights_with_a_zero_point(tmp_path: Path) -> None:
    weights = constant("w", np.ones((4, 4)), np.int8)
    path = write(tmp_path / "g.onnx", *quantised(weights, constant("z", np.full(4, 3), np.int8)))
    only(lint(path), "DequantizeLinear weights", "has a zero point", "symmetrically")


@pytest.mark.parametrize("weights", [constant("w", np.ones((4, 4)), np.uint8), four_bit("w", TensorProto.UINT4)])
def test_weights_without_a_sign(tmp_path: Path, weights: TensorProto) -> None:
    path = write(tmp_path / "g.onnx", *quantised(weights), opset=21)
    only(lint(path, max_opset=21), "DequantizeLinear weights", "UINT", "symmetrically")


def test_four_bits_need_opset_21_and_may_have_it(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", *quantised(four_bit("w")), opset=21)
    assert lint(path, target=ORIN) == []
    path = write(tmp_path / "g.onnx", *quantised(four_bit("w")), opset=22)
    only(lint(path, target=ORIN), "graph", "opset 22 is above 21")


def test_eight_bit_floats_on_a_gpu_without_them(tmp_path: Path) -> None:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT8E4M3FN, dims=[4, 4], raw_data=bytes(16))
    path = write(tmp_path / "g.onnx", *quantised(weights))
    only(lint(path, target=ORIN), "tensor w", "FLOAT8E4M3FN", "fp8 needs SM 8.9", "SM 8.7", "it takes fp32, fp16")
    assert lint(path, target=target("jetson-thor-jp7")) == []


def test_bfloat16_on_a_gpu_without_it(tmp_path: Path) -> None:
    turing = replace(target("x86-tensorrt-10"), capabilities=("7.5",))
    path = write(tmp_path / "g.onnx", [node("Relu", ["x"], ["y"])], kind=TensorProto.BFLOAT16)
    only(lint(path, target=turing), "tensor x", "bf16 needs SM 8.0")
    assert lint(path, target=ORIN) == []


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT16, TensorProto.FLOAT8E5M2])
def test_types_that_no_target_computes_with(tmp_path: Path, kind: int) -> None:
    nodes = [node("Cast", ["x"], ["h"], name="odd", to=kind), node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]
    only(lint(write(tmp_path / "g.onnx", nodes), target=ORIN), "Cast odd", "which no target computes with")


def test_pixels_may_be_bytes(tmp_path: Path) -> None:
    nodes = [node("Cast", ["p"], ["q"], to=TensorProto.FLOAT), node("Add", ["x", "q"], ["y"])]
    path = write(tmp_path / "g.onnx", nodes, inputs={"p": TensorProto.UINT8})
    assert lint(path, target=ORIN) == []


def test_weights_outside_of_the_file_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("MatMul", ["x", "w"], ["y"])], [constant("w", np.eye(4), np.float32)])
    model = load(path)
    save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    (tmp_path / "data").unlink()
    assert lint(path, target=ORIN) == []


def test_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a graph")
    for name in ("g.onnx", "missing.onnx"):
        with pytest.raises(BundleError, match=r"is not an ONNX graph .*; export it again"):
            lint(tmp_path / name)


@pytest.fixture
def bundle(tmp_path: Path) -> Manifest:
    """A manifest of two graphs, as far as the linter looks."""
    (tmp_path / "onnx").mkdir()
    write(tmp_path / "onnx/vision_encoder.onnx", [topk("k")], [constant("k", [4000])])
    write(tmp_path / "onnx/embed_tokens.onnx", [node("CumSum", ["x", "a"], ["y"], name="c")], [constant("a", 1)])
    names = ("vision_encoder", "embed_tokens")
    manifest = object.__new__(Manifest)
    graphs = {name: {"fp32": f"onnx/{name}.onnx"} for name in names}
    files = {f"onnx/{name}.onnx": FileEntry("", 0) for name in names}
    for field, value in {
        "root": tmp_path,
        "variants": (Variant("fp32", "fp32"),),
        "graphs": graphs,
        "files": files,
    }.items():
        object.__setattr__(manifest, field, value)
    return manifest


def test_bundle_is_refused_in_one_line(bundle: Manifest) -> None:
    write(bundle.root / "onnx/embed_tokens.onnx", [node("NonZero", ["x"], ["y"], name="n")])
    with pytest.raises(InputError) as caught:
        check_bundle(bundle, "fp32", ORIN)
    assert str(caught.value).startswith(
        "target 'jetson-orin-jp6' cannot take fp32 of this bundle: vision_encoder.onnx: "
    )
    assert str(caught.value).endswith("(and 1 more)")
    assert "\n" not in str(caught.value)


def test_bundle_that_suits(bundle: Manifest) -> None:
    write(bundle.root / "onnx/vision_encoder.onnx", [topk("k")], [constant("k", [4])])
    check_bundle(bundle, "fp32", ORIN)


def test_bundle_in_another_precision(bundle: Manifest) -> None:
    with pytest.raises(InputError, match="holds no fp16 graphs, only fp32"):
        check_bundle(bundle, "fp16", ORIN)


def test_one_finding_needs_no_count() -> None:
    assert summary([Finding("g", "n", "p")]) == "g: n: p"
