"""Engines that cannot run here say why in one line; of several that can, the choice is a rule."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.marks import needs_rtx
from tests.runtime.nvidia import FakeCuda, nvidia, write_engine_set
from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.bundle.engines import engines_dir
from vtc.bundle.manifest import load_manifest
from vtc.errors import BundleError, InputError, MissingDependency
from vtc.runtime.nvidia import cuda_devices, import_tensorrt
from vtc.runtime.onnxruntime.providers import choose_provider, import_onnxruntime
from vtc.runtime.tensorrt import engine_sets
from vtc.runtime.tensorrt.engine import Machine
from vtc.runtime.tensorrt.engine_sets import choose_engines
from vtc.runtime.vlm import VLM


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may add engines to."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


def test_bundle_without_engines_is_told_how_to_make_them(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"holds no engines; make some with vtc build .*bundle --target T"):
        VLM.load(bundle, backend="tensorrt")


def test_set_of_another_bundle_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch)
    other = write_toy_bundle(make_toy(seed=1), tmp_path / "other")
    with pytest.raises(BundleError, match="was built from another bundle"):
        VLM.load(bundle, backend="tensorrt", engines=write_engine_set(other))


def test_changed_engine_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch)
    root = write_engine_set(bundle)
    path = root / "embed_tokens.engine"
    path.write_text(path.read_text() + " ")
    with pytest.raises(BundleError, match=r"embed_tokens\.engine"):
        VLM.load(bundle, backend="tensorrt")


def test_engine_that_is_none_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch)
    root = write_engine_set(bundle)
    path = root / "embed_tokens.engine"
    path.write_text("x" * len(path.read_text()))
    with pytest.raises(BundleError, match=r"embed_tokens\.engine: TensorRT cannot load .*\(Serialization assertion"):
        VLM.load(bundle, backend="tensorrt", verify=False)


@needs_rtx
def test_the_real_library_says_why_an_engine_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bad.engine"
    path.write_bytes(b"abc" * 100)
    machine = Machine(import_tensorrt("tensorrt_rtx"), FakeCuda())  # type: ignore[arg-type]
    assert machine.captures_itself
    with pytest.raises(BundleError, match=r"bad\.engine: TensorRT cannot load the engine \(.*Error Code 1"):
        machine.deserialise(path)


def test_absent_library_is_named_with_its_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch)
    monkeypatch.setattr(engine_sets, "import_tensorrt", import_tensorrt)
    for library, extra in (("tensorrt", r"vtc\[tensorrt\]"), ("tensorrt_rtx", r"vtc\[rtx\]")):
        monkeypatch.setitem(sys.modules, library, None)
        root = write_engine_set(bundle, library=library, target=library)
        with pytest.raises(MissingDependency, match=rf"{library} cannot be imported .*{extra}.*--backend onnxruntime"):
            choose_engines(load_manifest(bundle), root)


def test_other_version_or_gpu_is_refused_with_both_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch)
    manifest = load_manifest(bundle)
    root = write_engine_set(bundle, version="10.1.2")
    with pytest.raises(BundleError, match=r"was built with tensorrt 10\.1\.2, and 10\.9\.8 is installed"):
        choose_engines(manifest, root)
    root = write_engine_set(bundle, capabilities=("8.7", "8.9"))
    with pytest.raises(BundleError, match=r"capability 8\.7, 8\.9, and this one has 8\.6.*--capability 8\.6"):
        choose_engines(manifest, root)
    with pytest.raises(InputError, match="holds fp32 engines, not fp16"):
        choose_engines(manifest, root, "fp16")


def test_machine_without_a_gpu_is_told_of_the_fallback(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch)
    monkeypatch.setattr(engine_sets, "gpu_here", lambda: None)
    write_engine_set(bundle)
    with pytest.raises(InputError, match="need an NVIDIA GPU and its driver, and there is none; --backend onnxruntime"):
        VLM.load(bundle, backend="tensorrt")


def test_of_several_sets_those_that_fit_are_ranked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(monkeypatch, cuda=FakeCuda("8.9"))
    manifest = load_manifest(bundle)
    for target, library, capability in (
        ("a-other-gpu", "tensorrt", "8.7"),
        ("b-rtx", "tensorrt_rtx", "8.9"),
        ("d-full", "tensorrt", "8.9"),
        ("c-full", "tensorrt", "8.9"),
    ):
        write_engine_set(bundle, target=target, library=library, capabilities=(capability,))
    order = ["c-full-fp32", "d-full-fp32", "b-rtx-fp32"]
    for name in order:
        assert choose_engines(manifest).engines.root.name == name
        shutil.rmtree(engines_dir(bundle, name.removesuffix("-fp32"), "fp32"))
    (bundle / "engines/empty").mkdir()
    write_engine_set(bundle, target="old", version="9")
    with pytest.raises(InputError, match=r"none of its engines run here: .*a-other-gpu.*8\.7.*; .*old-fp32.*10\.9\.8"):
        choose_engines(manifest)


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU")
def test_onnx_runtime_offers_tensorrt_as_a_provider_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = import_onnxruntime()
    offered = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "get_available_providers", lambda: offered)
    with pytest.raises(InputError, match=r"provider 'tensorrt' needs an NVIDIA GPU"):
        choose_provider("tensorrt")
