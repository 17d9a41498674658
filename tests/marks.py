"""What tests need that not every machine has."""

from __future__ import annotations

import platform
import sys

import pytest

needs_rtx = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="TensorRT for RTX is not installed for tests here"
)
"""Where it is installed for them, its absence is a failure."""
