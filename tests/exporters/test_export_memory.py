"""An export takes little memory beyond the model that it exports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs.studies import engines
from vtc.benchmark.memory import forget_peak
from vtc.models.random import shapes
from vtc.models.random.shapes import DecoderShape, Shape, TowerShape

WIDE = Shape(
    "wide",
    "few layers, so that it is exported quickly, but wide ones, so that weights are most of its memory; tower and "
    "decoder in such proportion as in a model of 0.5B",
    TowerShape("siglip_vision_model", 6, 1024, 16, 4096, image_size=112, patch_size=14, feature_layer=-1),
    DecoderShape("qwen2", 2, 1024, 16, 2, 4096, vocab=16_000, context=1024, tied=True),
)
OVERHEAD_MB = 200
"""Of the exporter's and ONNX Runtime's own; 160 MiB were measured on models of less than 1 MiB."""


@pytest.mark.slow
@pytest.mark.skipif(not forget_peak(), reason="the system does not count peaks from a point on")
def test_export_takes_half_as_much_again_as_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, WIDE.name, WIDE)
    monkeypatch.setattr(engines, "RECIPES", ("none",))
    size = engines.write_model(tmp_path, WIDE.name)["checkpoint_mb"]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "docs.studies.engines", "--work", tmp_path, "--step", "export", "none"],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["beyond_mb"] < engines.LIMIT * size + OVERHEAD_MB, told
