"""Bundles of recipes that cut in the decoder alone: bars are handed on from the pixels to cut after cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.onnx import export
from tests.exporters.export_request import request
from tests.tiny import image
from vtc.compressed.model import CompressedModel
from vtc.compressed.padding import padding_of
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter
from vtc.models.random.tiny_families import write_tiny
from vtc.runtime.decoder import KEPT_PADDING, PADDING
from vtc.runtime.vlm import VLM

pytestmark = pytest.mark.full  # tests/models/test_family_bundles.py has one cut behind a selector

CUTS = [
    {"kind": "prune_in_decoder", "layer": 1, "keep": 0.75, "selector": "feather"},
    {"kind": "prune_in_decoder", "layer": 2, "keep": 0.75, "selector": "dart"},
]
SIDE = 112
"""Rows and columns of pixels that the model is made ready for."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    """A model of the smallest kind whose images get bars, and its bundle."""
    directory = tmp_path_factory.mktemp("padding")
    path = write_tiny("qwen2_vl", directory / "model", encoder_layers=1, decoder_layers=3)
    asked = request(load_adapter(path, ImageOptions(image_size=(SIDE, SIDE))), *CUTS)
    export(asked, directory / "bundle")
    return asked.models[0], directory / "bundle"


def test_two_cuts_keep_no_bar_where_something_else_is_left(exported: tuple[CompressedModel, Path]) -> None:
    model, path = exported
    adapter, bundle = model.adapter, VLM.load(path, provider="cpu", threads=1)
    shapes = [[(SIDE, SIDE // 2)], [], [(SIDE // 3, SIDE), (SIDE, SIDE)]]
    images = [[image(5, shape) for shape in group] for group in shapes]
    asked = images, [adapter.chat("what is red ?", len(group)) for group in images]
    kept = bundle.kept(*asked)
    assert [places.tolist() for places in kept] == [places.tolist() for places in model.kept(*asked)]
    padding = padding_of(adapter, adapter.preprocess([one for group in images for one in group]))
    assert padding is not None
    marked = [torch.gather(padding, 1, torch.from_numpy(places)).sum(dim=1).numpy() for places in kept]
    real = (~padding).sum(dim=1).numpy()
    assert [bars.tolist() for bars in marked] == [np.maximum(0, places.shape[1] - real).tolist() for places in kept]
    assert real.min() < kept[2].shape[1] < kept[1].shape[1] < real.max()
    assert bundle.generate([[], []], [adapter.chat("what is red ?", 0)] * 2, 2)


def test_each_graph_hands_on_what_is_padding(exported: tuple[CompressedModel, Path]) -> None:
    _, path = exported
    bundle = VLM.load(path, provider="cpu", threads=1)
    bundle.ask(image(0), "what is red ?", 1)
    assert bundle.vision.open(bundle.manifest.images[0]).outputs == ["image_features", "keep_indices", PADDING]
    for graph in bundle.decoder.selectors:
        assert PADDING in graph.inputs
        assert KEPT_PADDING in graph.outputs
