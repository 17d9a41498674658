"""Engines are built of every graph, published whole, taken up again, and refused where they do not fit."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters.tensorrt.build import build
from tests.exporters.tensorrt.building import builder, request, room, two_profiles, write_graph
from tests.marks import needs_rtx
from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.artifact import MANIFEST, staging_dir
from vtc.bundle.engines import engines_dir, load_engines
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import BundleError, VtcError

pytestmark = needs_rtx


def test_every_graph_becomes_an_engine(bundle: Manifest) -> None:
    out = engines_dir(bundle.root, "rtx", "fp32")
    built = build(request(bundle, capabilities=("8.6", "8.9", "12.0")), out)

    assert list(built.engines) == list(bundle.graphs)
    profiles = {graph: [profile.name for profile in engine.profiles] for graph, engine in built.engines.items()}
    assert profiles == {
        "vision_encoder": ["run"],
        "embed_tokens": ["run"],
        "decoder_segment_0": ["prefill", "decode"],
        "token_selector_1": ["run"],
        "decoder_segment_1": ["prefill", "decode"],
    }
    assert built.capabilities == ("8.6", "8.9", "12.0")
    assert (built.library, built.library_version.split(".")[0]) == ("tensorrt_rtx", "1")
    assert (built.bundle, built.recipe_digest) == (bundle.digest, bundle.recipe_digest)
    assert {path.name for path in out.iterdir()} == {MANIFEST, *(f"{graph}.engine" for graph in bundle.graphs)}
    assert load_engines(out, bundle) == built
    assert not staging_dir(out).exists()


def test_both_profiles_of_an_engine_share_its_weights(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("MatMul", ["x", "w0"], ["y"]), weights=(weights,))
    builder().build(graph, tmp_path / "g.engine", two_profiles, room)
    assert weights.nbytes <= (tmp_path / "g.engine").stat().st_size < 1.5 * weights.nbytes


def test_weights_beside_the_graph(tmp_path: Path) -> None:
    weights = np.ones((256, 256), np.float32)
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("MatMul", ["x", "w0"], ["y"]), weights=(weights,))
    model = onnx.load(graph)
    onnx.save(model, graph, save_as_external_data=True, location="g.onnx_data", size_threshold=0)
    assert graph.stat().st_size < weights.nbytes
    builder().build(graph, tmp_path / "g.engine", two_profiles, room)
    assert (tmp_path / "g.engine").stat().st_size > weights.nbytes


def test_engines_of_another_bundle_are_refused(bundle: Manifest, tmp_path: Path) -> None:
    build(request(bundle, capabilities=("8.6",)), tmp_path / "engines")
    other = load_manifest(write_toy_bundle(make_toy(seed=1), tmp_path / "other"))
    with pytest.raises(BundleError, match=re.escape(f"built from another bundle than {other.root}; run vtc build")):
        load_engines(tmp_path / "engines", other)


@pytest.fixture
def engines(bundle: Manifest, tmp_path: Path) -> Path:
    out = tmp_path / "engines"
    build(request(bundle, capabilities=("8.6",)), out)
    return out


def test_changed_engines_are_refused(bundle: Manifest, engines: Path) -> None:
    content = bytearray((engines / "embed_tokens.engine").read_bytes())
    content[-1] ^= 1
    (engines / "embed_tokens.engine").write_bytes(content)
    load_engines(engines, bundle, verify=False)
    with pytest.raises(BundleError, match=r"embed_tokens\.engine has changed"):
        load_engines(engines, bundle)
    (engines / "embed_tokens.engine").unlink()
    with pytest.raises(BundleError, match=r"embed_tokens\.engine is missing"):
        load_engines(engines, bundle, verify=False)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"schema": 1', '"schema": 2', "newer vtc"),
        ('"target": "rtx"', '"target": "gtx"', "has changed since it was written"),
        ('"kind": "engines"', '"kind": "bundle"', "not a set of engines"),
    ],
)
def test_a_manifest_that_is_no_engine_sets_is_refused(
    bundle: Manifest, engines: Path, old: str, new: str, words: str
) -> None:
    text = (engines / MANIFEST).read_text()
    assert old in text
    (engines / MANIFEST).write_text(text.replace(old, new))
    with pytest.raises(BundleError, match=words):
        load_engines(engines, bundle)


def test_an_engine_that_the_set_does_not_hold(bundle: Manifest, engines: Path) -> None:
    with pytest.raises(BundleError, match="no engine for vision_encoder_1; run vtc build again"):
        load_engines(engines, bundle).file("vision_encoder_1")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([helper.make_node("Det", ["x"], ["y"], name="det_7")], "Det det_7: TensorRT for RTX"),
        (
            [
                helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
                helper.make_node("Add", ["x", "half"], ["y"], name="mixed"),
            ],
            "must have same input types",
        ),
    ],
)
def test_what_the_parser_refuses_is_one_line(tmp_path: Path, nodes: list[onnx.NodeProto], words: str) -> None:
    graph = write_graph(tmp_path / "bad.onnx", *nodes)
    with pytest.raises(VtcError) as caught:
        builder().build(graph, tmp_path / "bad.engine", two_profiles, room)
    line = str(caught.value)
    assert line.startswith(f"bad.onnx: {nodes[-1].op_type} {nodes[-1].name}: ")
    assert words in line
    assert "\n" not in line
    assert "catchCudaError" not in line  # that there is no GPU is not what is wrong
    assert not (tmp_path / "bad.engine").exists()


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(VtcError, match=r"bad.onnx: graph: TensorRT for RTX .*export the bundle again"):
        builder().build(tmp_path / "bad.onnx", tmp_path / "bad.engine", two_profiles, room)


def test_a_dimension_without_a_name(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]))
    model = onnx.load(graph)
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_param")
    onnx.save(model, graph)
    with pytest.raises(VtcError, match="axis 1 of input x has no name"):
        builder().build(graph, tmp_path / "g.engine", two_profiles, room)


def test_a_full_disk_leaves_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(VtcError, match="no space left on the disk"):
        builder().build(graph, tmp_path / "g.engine", two_profiles, room)
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


def test_progress_rises_and_its_failure_is_passed_on(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]))
    seen: list[tuple[str, int, int]] = []
    builder().build(graph, tmp_path / "g.engine", two_profiles, room, lambda *step: seen.append(step))
    assert {(label, total) for label, _, total in seen} == {("building g", 100)}
    done = [part for _, part, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] > 50

    def broken(*_: Any) -> None:
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        builder().build(graph, tmp_path / "h.engine", two_profiles, room, broken)
    assert not (tmp_path / "h.engine").exists()


def test_ctrl_c_stops_a_build(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]))
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        builder().build(graph, tmp_path / "g.engine", two_profiles, room, interrupt)
    assert not (tmp_path / "g.engine").exists()
    assert signal.getsignal(signal.SIGINT) is before
