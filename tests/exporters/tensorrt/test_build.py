"""Engines are built of every graph, published whole, taken up again, and refused where they do not fit."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import exporters.tensorrt.build as tensorrt
import exporters.tensorrt.memory as memory
from exporters.targets import target
from exporters.tensorrt.build import BuildRequest, build
from exporters.tensorrt.builder import Builder, import_library
from exporters.tensorrt.memory import GIB, available_ram, check_memory, need
from tests.marks import needs_rtx
from tests.runtime.conftest import TOYS
from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.artifact import MANIFEST, staging_dir
from vtc.bundle.engines import Limits, Profile, engines_dir, load_engines
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.cli import main
from vtc.errors import BundleError, InputError, MissingDependency, VtcError
from vtc.runtime.nvidia import Gpu

pytestmark = needs_rtx

RTX = target("rtx")
ORIN = target("jetson-orin-jp6")
NANO = Gpu("8.7", 8 * GIB, integrated=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Manifest:
    """A toy of two segments."""
    return load_manifest(write_toy_bundle(TOYS["visual exit"], tmp_path / "bundle"))


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
    with pytest.raises(VtcError, match="No space left on device"):
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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that fills with the names of graphs that are built."""
    done: list[str] = []
    real = Builder.build

    def building(self: Builder, graph: Path, *rest: Any) -> Any:
        result = real(self, graph, *rest)
        done.append(graph.stem)
        return result

    monkeypatch.setattr(Builder, "build", building)
    return done


def interrupted(bundle: Manifest, out: Path, at: str, **options: Any) -> None:
    def stop(label: str, *_: int) -> None:
        if label == f"building {at}":
            raise OSError("stop")

    with pytest.raises(OSError, match="stop"):
        build(request(bundle, progress=stop, **options), out)
    assert not out.exists()


def test_interrupted_build_is_taken_up_again(bundle: Manifest, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "engines"
    interrupted(bundle, out, "decoder_segment_0")
    assert counted == ["vision_encoder", "embed_tokens"]
    build(request(bundle), out)
    assert counted == list(bundle.graphs)
    load_engines(out, bundle)


@pytest.mark.parametrize("options", [{"limits": Limits(text=20)}, {"capabilities": ("8.9",)}, {"workspace": 0.5}])
def test_what_was_built_for_something_else_is_built_again(
    bundle: Manifest, tmp_path: Path, counted: list[str], options: dict[str, Any]
) -> None:
    interrupted(bundle, tmp_path / "engines", "embed_tokens")
    build(request(bundle, **options), tmp_path / "engines")
    assert counted == ["vision_encoder", *bundle.graphs]


def test_half_written_engine_is_not_trusted(bundle: Manifest, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "engines"
    interrupted(bundle, out, "decoder_segment_0")
    (staging_dir(out) / "embed_tokens.engine").write_bytes(b"half")
    (staging_dir(out) / "of_another_bundle.engine").write_bytes(b"old")
    built = build(request(bundle), out)
    assert counted == ["vision_encoder", "embed_tokens", *list(bundle.graphs)[1:]]
    assert not (built.root / "of_another_bundle.engine").exists()


def test_a_build_that_cannot_fit_is_refused_before_it_begins(
    bundle: Manifest, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_ram", lambda: 2**20)
    with pytest.raises(InputError, match=r"onnx/vision_encoder.onnx: .* 0.5 GiB of RAM, and 0.0 GiB are free; stop"):
        build(request(bundle), tmp_path / "engines")
    assert counted == []
    assert not staging_dir(tmp_path / "engines").exists()


def test_memory_that_a_build_takes() -> None:
    assert need(GIB, runs=False, tensors=5, workspace=GIB).device == 0
    wanted = need(GIB, runs=True, tensors=GIB, workspace=2 * GIB)
    assert (wanted.ram, wanted.device) == (3.5 * GIB, 4 * GIB)
    check_memory("g", wanted, Gpu("8.9", 4 * GIB, integrated=False), available=4 * GIB)
    check_memory("g", wanted, NANO, available=8 * GIB)
    with pytest.raises(InputError, match=r"7.5 GiB of RAM, and 7.0 GiB are free; .* give less --workspace"):
        check_memory("g", wanted, NANO, available=7 * GIB)
    with pytest.raises(InputError, match=r"4.0 GiB of GPU memory, and the GPU has 3.0 GiB; give less --workspace"):
        check_memory("g", wanted, Gpu("8.9", 3 * GIB, integrated=False), available=4 * GIB)


def test_memory_that_there_is(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:  7 kB\nSwapFree:  2 kB\nHugePages_Total:  0\n")
    assert available_ram(meminfo) == 9 * 1024
    assert available_ram(tmp_path / "none") is None
    assert (available_ram() or GIB) > 2**20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capabilities": ("8.6", "9.9")}, "does not build for SM 9.9; give --capability 7.5, 8.0, 8.6,"),
        ({"timing_cache": Path("t")}, "has no timing cache; leave --timing-cache out"),
        (
            {"precision": "int8"},
            "holds no int8 graphs, only fp32; give another --precision, or export it with --precision int8",
        ),
    ],
)
def test_what_does_not_go_together(
    bundle: Manifest, tmp_path: Path, counted: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        build(replace(request(bundle), **options), tmp_path / "engines")
    assert counted == []


def test_lint_comes_first(bundle: Manifest, tmp_path: Path, counted: list[str]) -> None:
    old = replace(RTX, max_opset=12)
    with pytest.raises(InputError, match=r"cannot take fp32 of this bundle: .*opset \d+ is above 12"):
        build(request(bundle, target=old), tmp_path / "engines")
    assert counted == []


@pytest.fixture
def full_tensorrt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """TensorRT for RTX in the place of TensorRT 10.3, whose interface it has."""
    rtx = importlib.import_module("tensorrt_rtx")
    module = SimpleNamespace(**{name: getattr(rtx, name) for name in dir(rtx) if not name.startswith("_")})
    module.__version__ = "10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)  # type: ignore[arg-type]
    return module


def test_a_target_without_its_library(bundle: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"needs TensorRT, .*nvidia-jetpack"):
        build(request(bundle, target=ORIN), tmp_path / "engines")


@pytest.mark.parametrize("release", ["10.2.0", "11.0.0"])
def test_a_library_of_another_release(full_tensorrt: SimpleNamespace, release: str) -> None:
    full_tensorrt.__version__ = release
    with pytest.raises(InputError, match=f"is TensorRT 10.3 or a later 10.x, and {release} is installed"):
        import_library(ORIN)


@pytest.mark.parametrize(
    ("gpu", "options", "words"),
    [
        (None, {}, "there is no NVIDIA GPU here; copy the bundle there"),
        (Gpu("8.9", GIB, integrated=False), {}, "is for SM 8.7, and the GPU here is SM 8.9"),
        (NANO, {"capabilities": ("8.7",)}, "leave --capability out"),
    ],
)
def test_full_tensorrt_builds_for_the_gpu_at_hand(
    bundle: Manifest,
    tmp_path: Path,
    full_tensorrt: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu | None,
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: gpu)
    with pytest.raises(InputError, match=re.escape(words)):
        build(request(bundle, target=ORIN, **options), tmp_path / "engines")


def test_the_path_of_full_tensorrt(
    bundle: Manifest, tmp_path: Path, full_tensorrt: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it can be walked without a GPU: nothing is timed, and no engine is asked for its memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: NANO)
    monkeypatch.setattr(Builder, "_open_cache", lambda self, config: SimpleNamespace(serialize=lambda: b"times"))
    monkeypatch.setattr(Builder, "memory_of", lambda self, engine: 7)
    monkeypatch.setattr(memory, "available_ram", lambda: 8 * GIB)
    built = build(request(bundle, target=ORIN, workspace=1.0), tmp_path / "engines")
    assert (built.library, built.library_version, built.capabilities) == ("tensorrt", "10.3.0", ("8.7",))
    assert {engine.memory for engine in built.engines.values()} == {7}
    assert (tmp_path / "cache/vtc/tensorrt-10.3.0-sm8.7.timing").read_bytes() == b"times"
    with pytest.raises(InputError, match="GiB of RAM"):
        build(request(bundle, target=ORIN, workspace=8.0), tmp_path / "engines")


class Config:
    """What a builder's configuration does with timing caches; takes those that begin with its name."""

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache == b"" or cache.startswith(b"ours")


def test_timing_cache(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    assert builder()._open_cache(Config()) is None
    assert builder(cache=file)._open_cache(Config()) == b""
    file.write_bytes(b"ours: 1")
    assert builder(cache=file)._open_cache(Config()) == b"ours: 1"
    file.write_bytes(b"of another GPU")
    assert builder(cache=file)._open_cache(Config()) == b""
    with pytest.raises(InputError, match="give another file"):
        builder(cache=file, own_cache=True)._open_cache(Config())


def test_build_command(bundle: Manifest) -> None:
    result = invoke("build", bundle.root, "--target", "rtx", "--capability", "8.6", "--max-text", "32")
    assert result.exit_code == 0, result.output
    assert "decoder_segment_1  prefill, decode" in result.stdout
    built = load_engines(bundle.root / "engines/rtx-fp32", bundle)
    assert built.limits == Limits(text=32)
    load_manifest(bundle.root)  # is not less of a bundle for it

    refused = invoke("build", bundle.root, "--target", "rtx", "-o", bundle.root / "onnx")
    assert refused.exit_code == 2
    assert "is not a set of engines of vtc's" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


LIGHT = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript"):
    sys.modules[name] = None
from vtc.cli import main
main(sys.argv[1:], prog_name="vtc")
"""


def test_building_needs_only_the_light_install(bundle: Manifest) -> None:
    command = ["build", str(bundle.root), "--target", "rtx", "--capability", "8.6", "--json"]
    done = subprocess.run([sys.executable, "-c", LIGHT, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["bundle"], facts["capabilities"]) == ("build", bundle.digest, ["8.6"])
    assert "onnx is not installed: graphs are not linted here" in done.stderr


def test_debug_shows_what_tensorrt_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = write_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]))
    builder().build(graph, tmp_path / "g.engine", two_profiles, room)
    assert capsys.readouterr() == ("", "")
    builder(debug=True).build(graph, tmp_path / "g.engine", two_profiles, room)
    assert "[VERBOSE]" in capsys.readouterr().err
