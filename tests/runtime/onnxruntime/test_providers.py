"""Providers are chosen without noise, and forced ones start or say why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtc.errors import InputError
from vtc.runtime.nvidia import cuda_devices
from vtc.runtime.onnxruntime import providers
from vtc.runtime.onnxruntime.providers import Provider, choose_provider, starts
from vtc.runtime.quiet import quiet_stderr

without_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU")


@without_gpu
def test_processor_is_chosen_where_there_is_no_gpu() -> None:
    assert choose_provider() == Provider("CPUExecutionProvider")
    assert choose_provider().short_name == "cpu"
    assert choose_provider("CPU") == choose_provider("CPUExecutionProvider")


@without_gpu
def test_forced_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(providers.import_onnxruntime(), "get_available_providers", lambda: offered)
    with pytest.raises(InputError, match=r"'cuda' needs an NVIDIA GPU.*--provider cpu"):
        choose_provider("cuda")


@without_gpu
def test_driver_without_libraries_means_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(providers.import_onnxruntime(), "get_available_providers", lambda: offered)
    monkeypatch.setattr(providers, "cuda_devices", lambda: 1)
    assert choose_provider() == Provider("CPUExecutionProvider")
    with pytest.raises(InputError, match="does not start here"):
        choose_provider("cuda")


def test_unknown_provider_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="'npu' is not in the installed onnxruntime; available: cpu"):
        choose_provider("npu")


def test_probe_starts_on_the_processor() -> None:
    assert starts("CPUExecutionProvider")


def test_native_stderr_is_dropped_and_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stderr():
        os.write(2, b"noise")
    os.write(2, b"signal")
    assert capfd.readouterr().err == "signal"


def test_running_a_bundle_prints_the_answer_and_nothing_else(toy_bundle: Path, tmp_path: Path) -> None:
    code = "import sys, vtc; from PIL import Image; print(vtc.load(sys.argv[1]).ask(Image.new('RGB', (9, 9)), 'red'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy_bundle)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
