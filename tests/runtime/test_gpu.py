"""Engines on a real GPU, where there is one: ``pytest -m gpu``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from exporters.targets import target
from tests.runtime.test_vlm import CONTINUATIONS, IMAGES, PROMPTS
from tests.runtime.toy import Segment, make_toy, write_toy_bundle
from vtc.cli import main
from vtc.runtime.tensorrt.engine_sets import connect
from vtc.runtime.vlm import VLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"),
]


def test_engines_score_as_onnx_runtime_does(tmp_path: Path) -> None:
    capability, rtx = connect().capability, target("rtx")
    if capability not in (*rtx.capabilities, *rtx.on_request):
        pytest.skip(f"TensorRT for RTX builds nothing for SM {capability}")
    segments = Segment((0, 1)), Segment((2,), "text")
    bundle = write_toy_bundle(make_toy(segments=segments, positions="original"), tmp_path / "bundle")
    limits = ["--max-batch", "4", "--max-images", "2", "--max-text", "40", "--max-new-tokens", "16"]
    built = CliRunner().invoke(main, ["build", str(bundle), "--target", "rtx", "--capability", capability, *limits])
    assert built.exit_code == 0, built.output
    model, wanted = VLM.load(bundle, backend="tensorrt"), VLM.load(bundle, provider="cpu")
    for _ in range(2):  # the second time, steps are replayed
        ours, theirs = (each.score(IMAGES, PROMPTS, CONTINUATIONS) for each in (model, wanted))
        for scores, expected in zip(ours, theirs, strict=True):
            # TensorRT multiplies float32 in TF32 unless it is told not to.
            assert np.abs(scores - expected).max() < 0.02 * np.abs(expected).max()
