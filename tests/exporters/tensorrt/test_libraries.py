"""Libraries that build engines, the command, and the light install."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import helper

import exporters.tensorrt.build as tensorrt
import exporters.tensorrt.memory as memory
from exporters.tensorrt.build import build
from exporters.tensorrt.builder import Builder, import_library
from exporters.tensorrt.memory import GIB
from tests.exporters.tensorrt.building import NANO, ORIN, builder, invoke, request, room, two_profiles, write_graph
from tests.marks import needs_rtx
from vtc.bundle.engines import Limits, load_engines
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import InputError, MissingDependency
from vtc.runtime.nvidia import Gpu

pytestmark = needs_rtx


@pytest.fixture
def full_tensorrt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """TensorRT for RTX in the place of TensorRT 10.3, whose interface it has."""
    rtx = importlib.import_module("tensorrt_rtx")
    module = SimpleNamespace(**{name: getattr(rtx, name) for name in dir(rtx) if not name.startswith("_")})
    module.__version__ = "10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
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
