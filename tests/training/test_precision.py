"""Training beside a model in fewer bits: what is trained stays float32."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vtc
from tests.tiny import recipe

PROJECT = {
    "kind": "project",
    "keep": 4,
    "projector": {
        "name": "deco",
        "training": {"steps": 8, "questions": 12, "validation": 4, "batch": 4, "learning_rate": 1e-2},
    },
}
PRUNE = {
    "kind": "prune",
    "keep": 4,
    "selector": {"name": "learned", "training": {"steps": 4, "images": 8, "validation": 4, "imitation_steps": 4}},
}


@pytest.mark.parametrize(("stage", "part"), [(PROJECT, "projector"), (PRUNE, "pruner")])
def test_a_part_is_trained_beside_bfloat16_as_beside_float32(
    stage: dict[str, Any], part: str, checkpoint: Path, source: Path, tmp_path: Path
) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        vtc.compress(checkpoint, recipe(stage), out=out, data=source, dtype=dtype)  # type: ignore[arg-type]
        assert {one.dtype for one in load_file(out / f"{part}.safetensors").values()} == {torch.float32}
        with (out / f"{part}_log.csv").open() as file:
            losses[dtype] = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]
