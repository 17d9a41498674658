"""Segments of the reference model that is pruned inside its decoder, rewritten."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from exporters.rewriting import rewrite
from tests.exporters.rewriting.decoders import assert_alike, export_segments
from vtc.reference import reference_dir
from vtc.runtime.decoder import BEFORE

CUT = {"kind": "prune_in_decoder", "layer": 0.6, "keep": 0.25, "selector": "feather"}
"""Where the recipe learnpruner cuts, by a selector that also looks at what enters the layer before."""


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Layers 0 to 4, and 5 to 7."""
    return export_segments(reference_dir(), tmp_path_factory.mktemp("segments"), CUT)


@pytest.mark.parametrize(("number", "layers", "before"), [(0, 5, 335), (1, 3, 224)])
def test_each_segment_has_its_cache_in_place(
    segments: list[Path], number: int, layers: int, before: int, tmp_path: Path
) -> None:
    portable = segments[number]
    model = ir.load(portable)
    assert (BEFORE in [value.name for value in model.graph.outputs]) == (number == 0)
    rewritten = rewrite(model, "ort", portable.stem)
    assert rewritten.fused["GroupQueryAttention"] == layers
    assert rewritten.fused["RotaryEmbedding"] == 2 * layers
    assert rewritten.in_place
    assert not rewritten.left
    assert rewritten.nodes_before == before
    assert rewritten.nodes_after <= 22 * layers + 30  # those of rolling rows and of angles are there once
    ir.save(model, tmp_path / "rewritten.onnx")
    assert_alike(portable, tmp_path / "rewritten.onnx", in_place=True)
