from __future__ import annotations

import sys

import pytest

from vtc.benchmark.environment import environment


def test_pytorch_is_timed_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment("cpu", 1)["onnxruntime"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = environment("cuda", 2)
    assert found["onnxruntime"] is None
    assert (found["provider"], found["threads"]) == ("cuda", 2)
