"""Exports are shared by tests where, and only where, they would come out the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import exporters.onnx
from exporters.graph_spec import GraphSpec
from exporters.graphs import graph_specs
from tests.sharing import fingerprint, shared_exports
from tests.tiny import RECIPES, compressed, image, write_checkpoint
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter

Change = Callable[[Any], object]


def modules(adapter: VLMAdapter, name: str) -> dict[str, nn.Module]:
    """The modules of a recipe's graphs, by graph."""
    return {spec.name: spec.module for spec in graph_specs([compressed(adapter, *RECIPES[name])], torch.float32)}


def test_the_same_checkpoint_makes_the_same_graphs(adapter: VLMAdapter, tmp_path: Path) -> None:
    again = load_adapter(write_checkpoint(tmp_path / "again"))
    _use(again)
    for name in RECIPES:
        ours, theirs = modules(adapter, name), modules(again, name)
        assert [*map(fingerprint, ours.values())] == [*map(fingerprint, theirs.values())]
        assert None not in map(fingerprint, ours.values())


def _use(adapter: VLMAdapter) -> None:
    """Do what tests do with a checkpoint that they share and leave as it was."""
    ids = adapter.tokenizer("what is it ?", return_tensors="pt").input_ids
    with torch.inference_mode():
        adapter.model(input_ids=ids, output_hidden_states=True)
        adapter.model.model.vision_tower(adapter.preprocess([image(0)]), output_hidden_states=True)
    assert adapter.chat_template


def test_recipes_share_what_they_leave_alone(adapter: VLMAdapter) -> None:
    pruned, whole, cut = (modules(adapter, name) for name in ("cls", "none", "cut"))
    for graph in ("embed_tokens", "decoder_model_merged"):
        assert fingerprint(pruned[graph]) == fingerprint(whole[graph])
    assert fingerprint(cut["vision_encoder"]) == fingerprint(whole["vision_encoder"])
    assert fingerprint(pruned["vision_encoder"]) != fingerprint(whole["vision_encoder"])


def _scale_a_weight(model: Any) -> None:
    model.vision.adapter.model.get_parameter("model.language_model.layers.0.mlp.up_proj.weight").mul_(2)


CHANGES: dict[str, tuple[str, Change]] = {
    "a weight": ("decoder_model_merged", _scale_a_weight),
    "a number": ("vision_encoder", lambda model: setattr(model.vision.stages[0], "keep", 6)),
    "a configuration": (
        "decoder_model_merged",
        lambda model: setattr(model.segments[0].adapter.model.config.text_config, "rms_norm_eps", 0.1),
    ),
    "a type": ("vision_encoder", lambda model: setattr(model.vision, "stages", nn.Sequential(*model.vision.stages))),
    "a function that a test defines": (
        "vision_encoder",
        lambda model: setattr(model.vision.stages[0].selector, "score", lambda tokens: tokens),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_graph_changes_its_fingerprint(checkpoint: Path, change: str) -> None:
    graph, apply = CHANGES[change]
    model = compressed(load_adapter(checkpoint), *RECIPES["cls"])
    specs = {spec.name: spec for spec in graph_specs([model], torch.float32)}
    before = fingerprint(specs[graph].module)
    with torch.no_grad():
        apply(model)
    assert fingerprint(specs[graph].module) != before
    assert (fingerprint(specs[graph].module) is None) == (change == "a function that a test defines")


@pytest.mark.parametrize("value", [functools.partial(lambda: 0), {1: object()}, {lambda: 0}, open])
def test_what_is_not_known_is_not_shared(value: object) -> None:
    assert fingerprint(value) is None


def test_a_graph_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path] = []

    def export_graph(spec: GraphSpec, path: Path, **_: Any) -> None:
        done.append(path)
        path.write_text(f"graph {len(done)}")

    monkeypatch.setattr("tests.sharing.export_graph", export_graph)
    linear, other = nn.Linear(2, 2), nn.Linear(2, 2)
    paths = [tmp_path / f"{number}.onnx" for number in range(3)]
    (tmp_path / "store").mkdir()
    for module, path in zip((linear, linear, other), paths, strict=True):
        with shared_exports(tmp_path / "store"):
            spec = GraphSpec("graph", module, (torch.zeros(1, 2),), ["in"], ["out"], ({0: "batch"},))
            exporters.onnx.export_graph(spec, path, opset=20)
    assert done == [paths[0], paths[2]]
    assert [path.read_text() for path in paths] == ["graph 1", "graph 1", "graph 2"]
    assert len(list((tmp_path / "store").iterdir())) == 2
