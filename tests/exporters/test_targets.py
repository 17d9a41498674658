"""The table of targets is complete, says where it is from, and agrees with the TensorRT that can be tried here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.target import Target, sm
from exporters.targets import PORTABLE, TARGETS, target
from tests.marks import needs_rtx
from vtc.errors import InputError


@pytest.mark.parametrize("one", TARGETS, ids=lambda one: one.name)
def test_a_target_is_fully_described(one: Target) -> None:
    assert all((one.summary, one.install, one.cuda, one.capabilities, one.sources))
    assert {"fp32", "fp16"} <= set(one.precisions)
    assert all(source.fact and source.address for source in one.sources)
    assert {"Unique", "DFT"} <= one.operators.absent
    for precision in one.precisions:
        assert not one.lacks(precision), "of no GPU that it is for"


def test_what_the_issue_of_each_device_is() -> None:
    orin, newer, thor = target("jetson-orin-jp6"), target("jetson-orin-jp7"), target("jetson-thor-jp7")
    assert (orin.cuda, orin.release, orin.capabilities) == ("12.6", (10, 3), ("8.7",))
    assert (newer.cuda, newer.release, newer.capabilities) == ("13.2", (10, 16), ("8.7",))
    assert thor.capabilities == ("11.0",)
    assert {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"} <= orin.operators.absent
    assert not orin.operators.einsum_ellipsis
    assert orin.precisions == ("fp32", "fp16", "bf16", "int8", "int4")
    assert "nvfp4" in thor.precisions
    assert [one.name for one in TARGETS if one.strongly_typed_only] == ["rtx", "x86-tensorrt-11"]


@pytest.mark.parametrize("one", TARGETS, ids=lambda one: one.name)
def test_exports_for_no_target_suit_all_but_for_the_size_of_k(one: Target) -> None:
    assert one.operators.absent <= PORTABLE.absent
    assert PORTABLE.cumsum_types <= one.operators.cumsum_types
    assert PORTABLE.scatter_reductions <= one.operators.scatter_reductions
    assert one.operators.einsum_ellipsis >= PORTABLE.einsum_ellipsis
    assert one.max_opset >= 20


def test_unknown_target() -> None:
    with pytest.raises(InputError, match=r"target 'orin' is not known; targets: rtx, .*jetson-orin-jp6"):
        target("orin")


def test_precision_that_a_gpu_has_not() -> None:
    with pytest.raises(InputError) as caught:
        target("jetson-orin-jp6").check("fp8")
    assert str(caught.value) == (
        "fp8 needs SM 8.9 or newer, and target jetson-orin-jp6 is for SM 8.7; "
        "it takes fp32, fp16, bf16, q4f16, q8f16, int8-static"
    )


def test_precision_of_one_gpu_of_several() -> None:
    rtx = target("rtx")
    assert rtx.allows("fp8")
    assert rtx.refusal("fp8", "8.6") == (
        "fp8 needs SM 8.9 or newer, and target rtx is for SM 8.6; "
        "it takes fp32, fp16, bf16, q4f16, q8f16, int8-static there"
    )
    assert rtx.allows("fp8", "8.9")
    assert not rtx.allows("bf16", "7.5")
    assert "does not build for SM 8.7" in rtx.refusal("fp16", "8.7")


def test_precision_is_asked_about_as_what_it_stores() -> None:
    orin = target("jetson-orin-jp6")
    assert orin.allows("int8-static")
    assert orin.allows("q4f16")
    assert orin.refusal("int8") == (
        "int8 looks its embedding up in int8, for CPUs, which no TensorRT takes; "
        "it takes fp32, fp16, bf16, q4f16, q8f16, int8-static"
    )
    assert orin.lacks("int8") == ""


def test_precision_that_a_release_has_not() -> None:
    assert target("x86-tensorrt-10").refusal("nvfp4").startswith("target x86-tensorrt-10 (TensorRT 10.3) does not take")


def test_opset_of_an_export() -> None:
    with pytest.raises(InputError, match="--opset 22 is above 20, the highest that target jetson-orin-jp6"):
        target("jetson-orin-jp6").check_export(["fp32"], 22)
    target("jetson-orin-jp7").check_export(["fp32", "fp16"], 22)


def test_no_target_tells_tokens_apart() -> None:
    stage = {"kind": "visual_experts", "visual_experts": 2}
    with pytest.raises(InputError, match="takes no visual tokens with experts of their own; run such bundles"):
        target("jetson-orin-jp6").check_plan({"stages": [stage]})
    target("jetson-orin-jp6").check_plan({"stages": [stage | {"visual_experts": None}, {"kind": "prune"}]})


def test_generations_compare_as_numbers() -> None:
    assert sm("12.0") > sm("8.9") > sm("8.7")


def test_needs_neither_onnx_nor_torch() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(('onnx', 'torch', 'tensorrt', 'tensorrt_rtx'))); "
    subprocess.run([sys.executable, "-c", code + "import exporters.targets, exporters.available"], check=True)


# What the table says of TensorRT for RTX, asked of it.

node = helper.make_node


def parsed(nodes: list[NodeProto], kind: int = TensorProto.FLOAT, **tensors: Any) -> tuple[Any, Any]:
    """Builder and network of a graph from x (1, 8192) to y of a type, None for a network that the parser refuses."""
    import tensorrt_rtx

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8192])],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            for name, value in tensors.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network_parser = tensorrt_rtx.OnnxParser(network, logger)
    return builder, network if network_parser.parse(model.SerializeToString()) else None


def built(builder: Any, network: Any, capability: str) -> bool:
    """Whether there is an engine for a GPU generation."""
    import tensorrt_rtx

    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(tensorrt_rtx.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    return builder.build_serialized_network(network, config) is not None


@needs_rtx
@pytest.mark.parametrize(
    ("operator", "inputs", "kind"),
    [
        ("NonZero", ["x"], TensorProto.INT64),
        ("DFT", ["packed"], TensorProto.FLOAT),
        ("Unique", ["x"], TensorProto.FLOAT),
        ("Compress", ["x", "mask"], TensorProto.FLOAT),
    ],
)
def test_rtx_refuses_what_the_table_calls_absent(operator: str, inputs: list[str], kind: int) -> None:
    assert operator in target("rtx").operators.absent
    before = node("Unsqueeze", ["x", "last"], ["packed"])
    tensors = {"mask": [True] * 8192, "last": np.array([2])}
    assert parsed([before, node("Relu", ["packed"], ["y"])], **tensors)[1] is not None
    assert parsed([before, node(operator, inputs, ["y"])], kind, **tensors)[1] is None


@needs_rtx
def test_rtx_refuses_a_reduction() -> None:
    tensors = {"i": np.zeros((1, 1), np.int64), "u": np.zeros((1, 1), np.float32)}
    for reduction in ("none", "add"):
        scatter = node("ScatterElements", ["x", "i", "u"], ["y"], axis=1, reduction=reduction)
        assert (parsed([scatter], **tensors)[1] is None) == (reduction == "add")


@needs_rtx
@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
@pytest.mark.parametrize("precision", ["bf16", "int4", "fp8"])
def test_rtx_builds_precisions_where_the_table_says(precision: str, capability: str) -> None:
    kinds = {"bf16": TensorProto.BFLOAT16, "int4": TensorProto.INT4, "fp8": TensorProto.FLOAT8E4M3FN}
    kind = kinds[precision]
    if precision == "bf16":
        nodes = [node("Cast", ["x"], ["h"], to=kind), node("MatMul", ["h", "w"], ["l"])]
        nodes.append(node("Cast", ["l"], ["y"], to=TensorProto.FLOAT))
    else:
        nodes = [node("DequantizeLinear", ["w", "s"], ["d"]), node("MatMul", ["x", "d"], ["y"])]
    weights = TensorProto(name="w", data_type=kind, dims=[8192, 16])
    weights.raw_data = bytes(8192 * 16 * {"bf16": 4, "int4": 1, "fp8": 2}[precision] // 2)
    builder, network = parsed(nodes, w=weights, s=np.float32(1))
    assert built(builder, network, capability) == target("rtx").allows(precision, capability)


@needs_rtx
@pytest.mark.parametrize("beyond", [0, 1])
def test_rtx_builds_up_to_the_largest_k(beyond: int) -> None:
    k = target("rtx").operators.max_topk_k + beyond
    builder, network = parsed([node("TopK", ["x", "k"], ["v", "y"])], TensorProto.INT64, k=np.array([k], np.int64))
    assert built(builder, network, "8.6") == (beyond == 0)
