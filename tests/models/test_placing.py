"""Where a model's parts are put, and that they compute the same there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vtc
from tests.tiny import RECIPES, compressed, image
from vtc.errors import InputError
from vtc.facts.placement import Placement
from vtc.models import check_model, load_adapter
from vtc.models import placing as module
from vtc.models.base import VLMAdapter
from vtc.models.placing import offloaded, spread


@pytest.fixture
def outline(checkpoint: Path) -> VLMAdapter:
    """The tiny model without weights."""
    return check_model(checkpoint).outline


def layer_bytes(adapter: VLMAdapter) -> int:
    """Bytes of one decoder layer in float32."""
    return sum(4 * one.numel() for one in adapter.decoder_layers[0].parameters())


def rest_bytes(adapter: VLMAdapter) -> int:
    """Bytes of all but the decoder's layers in float32."""
    return sum(4 * one.numel() for one in adapter.model.parameters()) - len(adapter.decoder_layers) * layer_bytes(
        adapter
    )


def test_layers_go_where_there_is_room_in_their_order(outline: VLMAdapter) -> None:
    layer, rest = layer_bytes(outline), rest_bytes(outline)
    room: dict[int | str, int] = {0: rest + 2 * layer, "cpu": layer}
    device_map = spread(outline.model, outline.decoder_layers, torch.float32, room)
    layers = {name: device for name, device in device_map.items() if ".layers." in name}
    assert list(layers.values()) == [0, 0, "cpu", "disk"]
    assert {device for name, device in device_map.items() if name not in layers} == {0}
    # In half of the bytes, more fit.
    half = spread(outline.model, outline.decoder_layers, torch.bfloat16, room)
    assert set(half.values()) == {0}


def test_every_weight_has_a_place(outline: VLMAdapter) -> None:
    device_map = spread(outline.model, outline.decoder_layers, torch.float32, {"cpu": 0})
    for name, _ in outline.model.named_parameters():
        assert any(name == place or name.startswith(f"{place}.") for place in device_map), name


def test_layers_that_stay_on_the_disk_compute_the_same(
    checkpoint: Path, adapter: VLMAdapter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_room", lambda _free: rest_bytes(adapter) + layer_bytes(adapter))
    away = load_adapter(checkpoint, placement=Placement("auto"))
    assert offloaded(away.model)
    assert "3 on the disk" in caplog.text
    for stages in (RECIPES["none"], RECIPES["learnpruner"]):
        asked = [[image(0)]], [adapter.chat("what ?")], [[5, 6, 7]]
        here, there = (compressed(one, *stages).score(*asked)[0] for one in (adapter, away))
        np.testing.assert_allclose(here, there, atol=1e-5)  # where weights lie in memory decides about last bits
    assert next(iter(away.decoder_layers[3].parameters())).device.type == "meta"


def test_a_model_that_fits_is_loaded_as_ever(checkpoint: Path) -> None:
    assert not offloaded(load_adapter(checkpoint, placement=Placement("auto")).model)


def test_a_weight_on_the_disk_must_be_a_number_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    name = next(one for one in weights if ".layers.3." in one and "language_model" in one)
    weights[name].flatten()[0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(module, "_room", lambda _free: 0)
    with pytest.raises(InputError, match="not all finite"):
        load_adapter(copy, placement=Placement("auto"))


def test_no_gpu_is_told_of(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_memory", lambda: None)
    with pytest.raises(InputError, match=r"^--device cuda: PyTorch .*; give --device cpu$"):
        load_adapter(checkpoint, placement=Placement("cuda"))


@pytest.mark.parametrize(("dtype", "wanted"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_type_that_is_asked_for(checkpoint: Path, dtype: str, wanted: torch.dtype) -> None:
    loaded = load_adapter(checkpoint, placement=Placement(dtype=dtype))  # type: ignore[arg-type]
    assert {one.dtype for one in loaded.model.parameters()} == {wanted}


def test_a_trained_recipe_runs_in_bfloat16(tmp_path: Path) -> None:
    made = vtc.compress("reference", "learnpruner", out=tmp_path / "c", dtype="bfloat16")
    report = vtc.validate(made.path, against="reference", samples=12, baselines=(), dtype="bfloat16")
    assert report["results"]["c"]["accuracy"] > 0.7


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'gpu' is not one of cpu, cuda, auto"):
        vtc.compress("reference", "none", out=tmp_path / "c", device="gpu")  # type: ignore[arg-type]
