"""Graphs that are not what the manifest says, or read what it does not list, are refused though every hash is right."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.toy import Segment, make_toy, write_toy_bundle
from vtc.artifact import publish, staging_dir
from vtc.bundle.external_data import external_files
from vtc.bundle.manifest import load_manifest
from vtc.bundle.weights import check_weights
from vtc.errors import BundleError
from vtc.runtime.vlm import VLM


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A toy bundle of two segments."""
    toy = make_toy(segments=(Segment((0, 1)), Segment((2,), "text")))
    return write_toy_bundle(toy, tmp_path / "bundle")


def resealed(bundle: Path, change: Callable[[Path], object], **fields: Any) -> Path:
    """The bundle with other files, published as if they were right."""
    data = json.loads((bundle / "manifest.json").read_text())
    work = staging_dir(bundle)
    bundle.rename(work)
    change(work)
    return publish(work, bundle, {**{name: data[name] for name in data if name not in ("files", "digest")}, **fields})


def swap(one: str, other: str) -> Callable[[Path], None]:
    """Two graphs change places."""

    def change(root: Path) -> None:
        first, second = (root / f"onnx/{name}.onnx" for name in (one, other))
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)

    return change


NAMES = ("vision_encoder", "embed_tokens", "decoder_segment_0", "decoder_segment_1", "token_selector_1")


@pytest.mark.parametrize(("one", "other"), [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]])
def test_graph_in_the_place_of_another_is_refused(bundle: Path, one: str, other: str) -> None:
    resealed(bundle, swap(one, other))
    with pytest.raises(BundleError, match=r"graph '\w+' is not the one that the manifest describes"):
        answer(bundle)


def answer(bundle: Path) -> str:
    """Ask it, so that every graph is opened."""
    from PIL import Image

    return VLM.load(bundle).ask(Image.new("RGB", (16, 16)), "red", 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kv_heads", 2),
        ("head_dim", 16),
        ("bidirectional", "image"),
        ("width", 4096),
        ("pad_token_id", 10**6),
        ("eos_token_ids", [10**6]),
    ],
    ids=["heads", "head width", "blocks", "width", "padding", "end"],
)
def test_manifest_of_another_decoder_is_refused(bundle: Path, key: str, value: object) -> None:
    facts = json.loads((bundle / "manifest.json").read_text())["generation"]
    resealed(bundle, lambda _: None, generation={**facts, key: value})
    with pytest.raises(BundleError, match="not the one that the manifest describes"):
        answer(bundle)


@pytest.mark.parametrize("parts", [["", "", ""], ["", " and ", "", ""]], ids=["two runs", "three runs"])
def test_prompts_of_other_numbers_of_tokens_are_refused(bundle: Path, parts: list[str]) -> None:
    (served,) = json.loads((bundle / "manifest.json").read_text())["images"]
    resealed(bundle, lambda _: None, images=[{**served, "prompt_parts": parts}])
    with pytest.raises(BundleError, match=r"visual tokens where the manifest's prompts have \d+"):
        answer(bundle)


def outside(location: str) -> Callable[[Path], None]:
    """The embedding's weights lie in another file."""

    def change(root: Path) -> None:
        path = root / "onnx/embed_tokens.onnx"
        model = onnx.load(path)
        (weight,) = model.graph.initializer
        if location and "/" not in location:
            (root / "onnx" / location).write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        path.write_bytes(model.SerializeToString())

    return change


@pytest.mark.parametrize(
    "location", ["../../weights", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "", ".hidden", "nowhere/../x"]
)
def test_weights_in_files_that_the_manifest_does_not_list_are_refused(bundle: Path, location: str) -> None:
    (bundle.parent / "weights").write_bytes(b"x")
    resealed(bundle, outside(location))
    with pytest.raises(BundleError, match="which the manifest does not list"):
        answer(bundle)


def test_weights_in_a_listed_file_are_loaded_and_covered_by_its_hash(bundle: Path) -> None:
    resealed(bundle, outside("embed_tokens.onnx_data"))
    assert answer(bundle) is not None
    data = bundle / "onnx/embed_tokens.onnx_data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleError, match="has changed"):
        answer(bundle)


def test_external_data_is_found_wherever_a_graph_can_keep_a_tensor(tmp_path: Path) -> None:
    def tensor(name: str) -> TensorProto:
        made = numpy_helper.from_array(np.zeros(2, np.float32), name)
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value=name)
        made.external_data.add(key="offset", value="0")
        return made

    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor("inner"))], "g", [], [])
    inner.initializer.append(tensor("inner weights"))
    graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)], "g", [], [])
    graph.initializer.append(tensor("weights"))
    model = helper.make_model(graph)
    node = helper.make_node("Constant", [], ["f"], value=tensor("function"))
    model.functions.append(helper.make_function("d", "f", [], ["f"], [node], []))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {"inner", "inner weights", "weights", "function"}
    path.write_bytes(b"\x0blocation")
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        external_files(path)


@pytest.mark.parametrize("kind", ["device", "pipe", "huge", "folder", "deep"])
def test_manifest_that_is_no_small_file_is_refused_at_once(bundle: Path, kind: str) -> None:
    file = bundle / "manifest.json"
    file.unlink()
    if kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "huge":
        with file.open("wb") as stream:
            stream.truncate(3 * 2**30)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_text("[" * 10**6)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        load_manifest(bundle)


@pytest.mark.parametrize("files", [None, [], {"a": None}, {"a": {"sha256": 1, "bytes": "x"}}, {"../a": {}}])
def test_manifest_with_files_of_another_kind_is_refused(bundle: Path, files: object) -> None:
    from vtc.artifact import verify_files

    with pytest.raises(BundleError):
        verify_files(bundle, files)  # type: ignore[arg-type]


def test_manifest_of_schema_3_without_its_fields_is_refused(bundle: Path) -> None:
    resealed(bundle, lambda _: None, schema=3, plan={}, images=[{}])
    with pytest.raises(BundleError, match="not a manifest of its schema"):
        load_manifest(bundle)


FLOATS = {"float32": np.float32, "float16": np.float16, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("kept", ["bytes", "floats", "outside"])
@pytest.mark.parametrize("kind", FLOATS)
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, kind: str, kept: str) -> None:
    def write(*values: float) -> Path:
        array = np.array(values, FLOATS[kind])
        tensor = numpy_helper.from_array(array, "w")
        if kept == "floats":
            tensor.ClearField("raw_data")
            (tensor.float_data if kind == "float32" else tensor.double_data).extend(values)
        elif kept == "outside":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "data", "offset": "3", "length": str(array.nbytes)}.items():
                tensor.external_data.add(key=key, value=value)
            (tmp_path / "data").write_bytes(b"\xff\xff\xff" + array.tobytes() + b"\xff\xff")
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        path = tmp_path / "graph.onnx"
        path.write_bytes(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString())
        return path

    if kept == "floats" and kind not in ("float32", "float64"):
        return  # ONNX has no such field for them
    top = float(ml_dtypes.finfo(FLOATS[kind]).max)
    check_weights(write(*[top, -top, 0.0] * 50_000))
    check_weights(write(-math.inf))
    for value, name in [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")]:
        path = write(*[1.0] * 140_000, value, 2.0)
        with pytest.raises(BundleError, match=f"graph.onnx: w holds {name}; export it again"):
            check_weights(path)
    with pytest.raises(BundleError, match="w holds NaN"):
        check_weights(write(math.nan))


@pytest.mark.parametrize("value", [math.nan, 1.5])
@pytest.mark.parametrize("kept", ["one", "several", "alpha", "float16", "bfloat16"])
def test_numbers_of_nodes_and_whole_numbers_are_looked_at(tmp_path: Path, kept: str, value: float) -> None:
    nodes, tensors = [], []
    if kept in FLOATS:
        bits = np.array([1.0, value, -2.0], FLOATS[kept]).view(np.uint16)
        number = TensorProto.FLOAT16 if kept == "float16" else TensorProto.BFLOAT16
        tensors = [TensorProto(name="w", data_type=number, dims=[3], int32_data=bits.tolist())]
    else:
        attributes: dict[str, Any] = {"one": {"value_float": value}, "several": {"value_floats": [1.0, value]}}
        kind = "LeakyRelu" if kept == "alpha" else "Constant"
        nodes = [helper.make_node(kind, [], ["c"], **attributes.get(kept, {"alpha": value}))]
    path = tmp_path / "graph.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString())
    if math.isnan(value):
        with pytest.raises(BundleError, match=r"graph.onnx: (w|value_floats?|alpha) holds NaN; export it again"):
            check_weights(path)
    else:
        check_weights(path)


def test_weights_outside_their_file_are_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "data", "offset": "4", "length": "8"}.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "graph.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())
    (tmp_path / "data").write_bytes(b"x" * 11)
    with pytest.raises(BundleError, match="w lies outside its file"):
        check_weights(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_texts_of_a_bundle_are_bounded(bundle: Path, name: str) -> None:
    resealed(bundle, lambda root: os.truncate(root / name, 2**28))
    with pytest.raises(BundleError, match=name):
        VLM.load(bundle)
