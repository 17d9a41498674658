"""What tests of engine builds have in common: targets, graphs, profiles and requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from exporters.targets import target
from exporters.tensorrt.build import BuildRequest
from exporters.tensorrt.builder import Builder, import_library
from exporters.tensorrt.memory import GIB
from vtc.bundle.engines import Profile
from vtc.bundle.manifest import Manifest
from vtc.cli import main
from vtc.runtime.nvidia import Gpu

RTX = target("rtx")
ORIN = target("jetson-orin-jp6")
NANO = Gpu("8.7", 8 * GIB, integrated=True)


def request(bundle: Manifest, **options: Any) -> BuildRequest:
    return BuildRequest(bundle, options.pop("target", RTX), bundle.precisions[0], **options)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def builder(**options: Any) -> Builder:
    return Builder(import_library(RTX), RTX, ("8.6",), **options)


def write_graph(path: Path, *nodes: onnx.NodeProto, weights: tuple[np.ndarray[Any, Any], ...] = ()) -> Path:
    """A graph of x (batch_size, sequence_length, 8 or the rows of the first weights) to y."""
    width = weights[0].shape[0] if weights else 8
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", "sequence_length", width])
        for name in "xy"
    )
    constants = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(weights)]
    graph = helper.make_graph(list(nodes), "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def two_profiles(inputs: dict[str, list[int | str]]) -> tuple[Profile, ...]:
    width = inputs["x"][2]
    assert isinstance(width, int)
    return (
        Profile("prefill", {"x": ((1, 1, width), (1, 64, width), (1, 512, width))}),
        Profile("decode", {"x": ((1, 1, width), (1, 1, width), (1, 2, width))}),
    )


def room(_: int) -> None:
    """Enough memory."""
