"""Calibration turns `auto` into numbers, remembers what it measured, and needs data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import compressed, image, recipe
from vtc.calibrate.calibrator import Calibrator
from vtc.calibrate.drop_layers import recording_influence
from vtc.calibrate.measurements import Measurements
from vtc.calibrate.measuring import Compared
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.stages.frequency_filter import retained_energy

AUTOS: dict[str, dict[str, Any]] = {
    "stages.0.keep": {"kind": "frequency_filter", "keep": "auto", "energy": 0.8},
    "stages.0.selector.layers": {
        "kind": "prune",
        "keep": 5,
        "selector": {"name": "cls_attention", "layers": "auto"},
    },
    "stages.0.layer": {"kind": "visual_exit", "layer": "auto"},
    "stages.0.layers": {"kind": "drop_layers", "layers": "auto", "count": 2},
}


@pytest.fixture
def samples(adapter: VLMAdapter) -> list[Sample]:
    return [Sample([image(seed)], adapter.chat("what is it ?")) for seed in range(3)]


@pytest.mark.parametrize("key", AUTOS)
def test_every_auto_becomes_a_number_that_works(adapter: VLMAdapter, samples: list[Sample], key: str) -> None:
    unresolved = recipe(AUTOS[key])
    assert unresolved.autos == [key]
    resolved = Calibrator(adapter, samples, Measurements()).resolve(unresolved)
    assert resolved.autos == []
    model = compressed(adapter, *resolved.canonical()["stages"])
    assert model.generate([samples[0].images], [samples[0].prompt], 2)


def test_energy_chooses_the_smallest_grid_that_holds_it(adapter: VLMAdapter, samples: list[Sample]) -> None:
    resolved = Calibrator(adapter, samples, Measurements()).resolve(recipe(AUTOS["stages.0.keep"]))
    keep = resolved.canonical()["stages"][0]["keep"]
    side = int(keep**0.5)
    vision = compressed(adapter).vision
    tokens = vision.tokens(adapter.preprocess([s.images[0] for s in samples])).features  # type: ignore[operator]
    assert retained_energy(tokens, (4, 4), (side, side)) >= 0.8
    assert side == 1 or retained_energy(tokens, (4, 4), (side - 1, side - 1)) < 0.8


def test_dyvte_exits_only_where_the_loss_stays(
    adapter: VLMAdapter, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers 2 and 3 agree; at layer 2 the loss has grown by a tenth."""
    measured = {1: Compared(1.0, 0.5, 2.0, 1.0), 2: Compared(0.1, 1.0, 1.1, 1.0), 3: Compared(0.0, 1.0, 1.02, 1.0)}
    calibrator = Calibrator(adapter, samples, Measurements())
    monkeypatch.setattr(calibrator.measuring, "compared", lambda _, stage: measured[stage.layer])
    for criterion, layer in (("agreement", 2), ("dyvte", 3)):
        resolved = calibrator.resolve(recipe({"kind": "visual_exit", "layer": "auto", "criterion": criterion}))
        assert resolved.canonical()["stages"][0]["layer"] == layer


def test_layers_of_least_influence_are_dropped(adapter: VLMAdapter, samples: list[Sample]) -> None:
    """A layer whose output projections are zero has no influence at all, so it goes first."""
    layer: Any = adapter.decoder_layers[2]
    weights = [layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight]
    saved = [weight.clone() for weight in weights]
    for weight in weights:
        weight.zero_()
    try:
        spec = {"kind": "drop_layers", "layers": "auto", "count": 1}
        resolved = Calibrator(adapter, samples, Measurements()).resolve(recipe(spec))
        assert resolved.canonical()["stages"][0]["layers"] == [2]
        spec = {**spec, "visual_only": True}
        assert Calibrator(adapter, samples, Measurements()).resolve(recipe(spec)).autos == []
    finally:
        for weight, value in zip(weights, saved, strict=True):
            weight.copy_(value)


def test_influence_is_the_mean_cosine_distance() -> None:
    layer = torch.nn.Linear(3, 3)
    with recording_influence({7: layer}) as influence, torch.no_grad():
        layer(x := torch.randn(2, 5, 3))
        expected = 1 - torch.nn.functional.cosine_similarity(x, layer(x), dim=-1).mean()
    assert influence[7][0] == pytest.approx(float(expected), abs=1e-6)
    assert not layer._forward_hooks


def test_measurements_survive(
    adapter: VLMAdapter, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "measured.json"
    first = Calibrator(adapter, samples, Measurements(path)).resolve(recipe(AUTOS["stages.0.layer"]))
    again = Measurements(path)
    assert again.values

    def no_more(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(CompressedModel, "score", no_more)
    assert Calibrator(adapter, samples, again).resolve(recipe(AUTOS["stages.0.layer"])) == first


def test_nothing_to_calibrate_on_is_refused(adapter: VLMAdapter) -> None:
    with pytest.raises(InputError, match=r"leaves stages\.0\.layer to calibration; give --data"):
        Calibrator(adapter, [], Measurements()).resolve(recipe(AUTOS["stages.0.layer"]))


def test_a_resolved_recipe_needs_no_data(adapter: VLMAdapter) -> None:
    fixed = recipe({"kind": "visual_exit", "layer": 2})
    assert Calibrator(adapter, [], Measurements()).resolve(fixed) == fixed
