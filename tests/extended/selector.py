"""The selector of docs/extending.md: without a table, and as a word of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vtc
from exporters import smoke
from exporters.onnx import export
from tests.test_extending import blocks
from tests.tiny import recipe
from vtc.data.datasets import load_dataset
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.recipe.selectors import ENCODER_SELECTORS

STAGE: dict[str, Any] = {"kind": "prune", "keep": 6, "selector": {"name": "bright_middle", "pull": 0.25}}


def test_example_without_a_table() -> None:
    (piece,) = [block.text for block in blocks() if not block.file]
    names: dict[str, Any] = {"__name__": "example"}
    exec(piece, names)
    model = names["model"]
    item = load_dataset("reference", 1, seed=3).items[0]
    asked = [[item.load()]], [model.adapter.chat(item.question)]
    (kept,) = model.kept(*asked)
    assert kept.shape == (1, 32)
    assert kept.tolist() != [[4 + 8 * place for place in range(32)]]
    assert model.generate(*asked)[0].text


def test_example_in_a_recipe(adapter: VLMAdapter, tmp_path: Path) -> None:
    assert "bright_middle" in ENCODER_SELECTORS
    made = plan(recipe(STAGE), adapter.facts)
    assert (made.keep, made.has_places, made.stages[0].detail) == (6, True, "bright_middle")
    request = smoke.prepare(recipe(STAGE), tmp_path, decoder_layers=2)
    export(request, tmp_path / "bundle")
    sample = request.samples[0]
    asked = [sample.images], [sample.prompt]
    assert vtc.load(tmp_path / "bundle").kept(*asked)[0].tolist() == request.model.kept(*asked)[0].tolist()
