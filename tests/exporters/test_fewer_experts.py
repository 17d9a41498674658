"""Mixtures with fewer experts are exported as they are: graphs hold what is left, and answer as the model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters.onnx import export
from tests.exporters.export_request import request
from tests.tiny import image
from vtc.bundle.manifest import load_manifest
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.recipe import NONE
from vtc.runtime.vlm import VLM

DROPPED = {"kind": "drop_layers", "layers": [1, 2, 3]}
"""Exports take as long as the model is deep."""
PAIRS = [[[2 * pair, 0.25], [2 * pair + 1, 0.75]] for pair in range(4)]
STAGES: dict[str, tuple[dict[str, Any], int]] = {
    "pruned": ({"kind": "prune_experts", "experts": [[0, 2, 5]] * 4}, 3),
    "merged": ({"kind": "merge_experts", "groups": [PAIRS] * 4}, 4),
}


@pytest.mark.parametrize("name", STAGES)
def test_graphs_hold_what_is_left_and_answer_alike(mixture: VLMAdapter, tmp_path: Path, name: str) -> None:
    stage, experts = STAGES[name]
    placement = {"devices": 2}
    wanted = request(mixture, DROPPED, stage, placement=placement)
    found = export(wanted, tmp_path / "bundle")["fp32"]
    assert found.greedy_match == 1.0
    asked = [[image(0)], [image(1)]], [mixture.chat("what is it ?"), mixture.chat("where is the red circle ?")]
    bundle = VLM.load(tmp_path / "bundle")
    answers = wanted.model.generate(*asked, 8)
    assert [one.token_ids for one in bundle.generate(*asked, 8)] == [one.token_ids for one in answers]
    forced = [[*answer.token_ids, 1] for answer in answers]
    for ours, theirs in zip(bundle.score(*asked, forced), wanted.model.score(*asked, forced), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)

    stacked = [
        tuple(tensor.dims)
        for file in (tmp_path / "bundle/onnx").rglob("*.onnx")
        for tensor in onnx.load(file).graph.initializer
        if len(tensor.dims) == 3 and tensor.dims[0] > 1
    ]
    decoder = mixture.facts.decoder
    sizes = experts * decoder.width * decoder.ffn
    assert {dims[0] for dims in stacked} == {experts}
    assert {int(np.prod(dims)) for dims in stacked} == {sizes, 2 * sizes}

    manifest = load_manifest(tmp_path / "bundle")
    assert manifest.baseline_plan["flops"] == plan(NONE, mixture.facts).to_dict()["flops"]
    assert json.loads((tmp_path / "bundle/manifest.json").read_text())["placement"] == placement
