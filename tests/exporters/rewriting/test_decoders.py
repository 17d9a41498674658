"""Decoders of all families, rewritten: they compute what they did, and say what was fused and what was not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from exporters.rewriting import Form, rewrite
from tests.exporters.rewriting.decoders import LAYERS, assert_alike, export_decoder, join_heads
from vtc.models import FAMILIES

ALWAYS = {"gemma3", "llava", "paligemma", "qwen3_vl_moe"}
"""One family for each kind of decoder; `make test-full` takes the others too."""

NORMS = {"gemma3": 6, "paligemma": 4, "qwen3_vl": 4, "qwen3_vl_moe": 4}
"""Norms of a layer, where there are not two; and of the head there is one."""
MIXTURES = {"qwen3_vl_moe"}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A tiny decoder of each family, exported when it is asked for."""
    return cache(lambda family: export_decoder(family, tmp_path_factory.mktemp(family)))


def families() -> Iterator[object]:
    """All families, a family's tests in one worker."""
    for family in FAMILIES:
        marks = [pytest.mark.xdist_group(f"rewriting-{family}")]
        yield pytest.param(family, marks=marks if family in ALWAYS else [*marks, pytest.mark.full])


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("form", ["ort", "opset23"])
def test_a_decoder_computes_the_same(family: str, form: Form, decoders: object, tmp_path: Path) -> None:
    assert callable(decoders)
    portable: Path = decoders(family)
    model = ir.load(portable)
    rewritten = rewrite(model, form, "decoder_model_merged")
    ir.save(model, tmp_path / "rewritten.onnx")

    norms = NORMS.get(family, 2) * LAYERS + 1
    expected = {"RotaryEmbedding": 2 * LAYERS}
    if form == "opset23":
        expected |= {"Attention": LAYERS, "RMSNormalization": norms}
        assert not rewritten.left
        onnx.checker.check_model(tmp_path / "rewritten.onnx", full_check=True)
    else:
        skips = rewritten.fused["SkipSimplifiedLayerNormalization"]
        assert skips == 2 * LAYERS - 1  # before the first norm nothing is added, before the last tokens are taken
        expected |= {"SkipSimplifiedLayerNormalization": skips, "SimplifiedLayerNormalization": norms - skips}
        expected["GroupQueryAttention"] = LAYERS
        expected |= {"MoE": LAYERS} if family in MIXTURES else {}
        assert not rewritten.left
    assert rewritten.fused == expected
    assert rewritten.in_place == (form == "ort")
    assert (rewritten.nodes_before, rewritten.nodes_after) == (len(ir.load(portable).graph), len(model.graph))
    assert rewritten.nodes_after < 0.7 * rewritten.nodes_before
    assert_alike(portable, tmp_path / "rewritten.onnx", in_place=rewritten.in_place)


@pytest.mark.parametrize(("family", "rotations"), [("llava", 1), ("qwen2_vl", 1), ("qwen3_vl_moe", 2)])
def test_joined_heads_are_turned_together(family: str, rotations: int, decoders: object, tmp_path: Path) -> None:
    """Unless norms come between, whatever the positions, also of several rows, which are padded."""
    assert callable(decoders)
    joined = join_heads(decoders(family), tmp_path / "joined.onnx")
    model = ir.load(joined)
    rewritten = rewrite(model, "ort", "decoder_model_merged")
    ir.save(model, tmp_path / "rewritten.onnx")
    assert rewritten.fused["RotaryEmbedding"] == rotations * LAYERS
    assert_alike(joined, tmp_path / "rewritten.onnx", in_place=True)
