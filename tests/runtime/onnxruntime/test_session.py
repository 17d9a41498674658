"""Sessions are opened as a variant, and whoever owns the machine, ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vtc.bundle.facts import Variant
from vtc.bundle.manifest import load_manifest
from vtc.errors import InputError
from vtc.runtime.backends import open_backend
from vtc.runtime.onnxruntime.backend import OnnxRuntime, forms_of
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

SPINNING = "session.intra_op.allow_spinning"
LEVEL = "session.qdq_matmulnbits_accuracy_level"


def settings(backend: OnnxRuntime, graph: str) -> Any:
    opened: Any = backend.open(graph)
    return opened._session.get_session_options()


def entry(backend: OnnxRuntime, name: str, graph: str = "decoder_model_merged") -> str:
    return str(settings(backend, graph).get_session_config_entry(name))


@pytest.mark.parametrize("spin", [False, True])
def test_threads_spin_when_told_to(toy_bundle: Path, spin: bool) -> None:
    backend = OnnxRuntime(load_manifest(toy_bundle), RuntimeOptions(provider="cpu", spin=spin))
    assert entry(backend, SPINNING) == str(int(spin))
    assert entry(backend, LEVEL) == "1"


def test_graphs_beside_the_decoder_s_leave_it_the_cores(toy_bundle: Path) -> None:
    backend = OnnxRuntime(load_manifest(toy_bundle), RuntimeOptions(provider="cpu", spin=True, threads=3))
    threads = {"embed_tokens": 1, "vision_encoder": 3, "decoder_model_merged": 3}
    for graph, count in threads.items():
        assert settings(backend, graph).intra_op_num_threads == count
        assert entry(backend, SPINNING, graph) == str(int(graph == "decoder_model_merged"))


@pytest.mark.parametrize(
    ("provider", "version", "best"),
    [("cpu", "1.31.1", "ort"), ("cuda", "2.0.0", "ort"), ("cpu", "1.30.9", "portable"), ("dml", "1.40.0", "portable")],
)
def test_forms_by_provider_and_version(provider: str, version: str, best: str) -> None:
    assert forms_of(provider, version)[0] == best


def test_a_variant_s_settings_hold(toy_bundle: Path) -> None:
    manifest = load_manifest(toy_bundle)
    asking = replace(manifest, variants=(Variant("fp32", "fp32", session={LEVEL: "4"}),))
    assert entry(OnnxRuntime(asking, RuntimeOptions(provider="cpu")), LEVEL) == "4"


@pytest.mark.parametrize("backend", ["tensorrt", "openvino"])
def test_other_backends_do_not_spin(toy_bundle: Path, backend: str) -> None:
    with pytest.raises(InputError, match="--spin goes with --backend onnxruntime"):
        open_backend(load_manifest(toy_bundle), RuntimeOptions(backend, spin=True))


def test_spinning_changes_no_answer(toy_bundle: Path) -> None:
    spinning = VLM.load(toy_bundle, provider="cpu", spin=True, threads=2)
    assert spinning.ask(None, "hello") == VLM.load(toy_bundle, provider="cpu").ask(None, "hello")
