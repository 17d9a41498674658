"""What the driver says of the GPU at hand; the driver is a stand-in."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from vtc.runtime.nvidia import Gpu, gpu_here

ATTRIBUTES = {75: 8, 76: 7, 18: 1}


class Driver:
    """A machine with one Jetson GPU, or none."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices

    def cuInit(self, _: int) -> int:
        return 0 if self.devices else 100

    def cuDeviceGet(self, _device: Any, number: int) -> int:
        return 0 if number < self.devices else 101

    def cuDeviceGetAttribute(self, value: Any, number: int, _: Any) -> int:
        value._obj.value = ATTRIBUTES[number]
        return 0

    def cuDeviceTotalMem_v2(self, value: Any, _: Any) -> int:
        value._obj.value = 8 * 2**30
        return 0


def test_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    assert gpu_here() == Gpu("8.7", 8 * 2**30, integrated=True)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(0))
    assert gpu_here() is None


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_here() is None
