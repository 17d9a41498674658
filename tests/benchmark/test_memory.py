"""Peak memory belongs to the model, not to whoever asks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtc.benchmark.memory import measure_memory, peak_rss_mb
from vtc.errors import VtcError
from vtc.runtime.options import RuntimeOptions

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_peak_stays_after_memory_is_given_back() -> None:
    before = peak_rss_mb()
    block = np.ones(64 * 2**20, np.uint8)
    del block
    after = peak_rss_mb()
    assert before is not None
    assert after is not None
    assert after >= before


@linux
def test_a_large_parent_does_not_count(pruned_bundle: Path) -> None:
    ballast = np.ones(500 * 2**20, np.uint8)
    memory = measure_memory(pruned_bundle, [Image.new("RGB", (16, 16))], "what ?", 2, RuntimeOptions(provider="cpu"))
    assert ballast[-1] == 1
    assert memory.before_load_mb is not None
    assert memory.peak_mb is not None
    assert 0 < memory.before_load_mb < memory.peak_mb < 400


def test_a_bundle_that_does_not_load_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(VtcError, match="memory") as caught:
        measure_memory(tmp_path, [], "what ?", 2, RuntimeOptions())
    assert "\n" not in str(caught.value)
