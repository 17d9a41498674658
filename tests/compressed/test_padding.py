"""Which tokens are padding, read off the pixels that each kind of image processor makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.models.families import compressed
from tests.tiny import image
from vtc.compressed.padding import bars, blank_cells, padding_of
from vtc.facts.layout import Grid, ImageOptions
from vtc.inputs.pixels import Picture, PixelSpec, to_pixels
from vtc.models import load_adapter
from vtc.models.random.tiny_families import write_tiny

LOOK = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
SQUARE = Picture(resize=((56, 56),))
SPECS = {
    "squares": PixelSpec((SQUARE,), aspect=(1, 1), **LOOK),
    "a colour of its own": PixelSpec((SQUARE,), aspect=(1, 1), background=(122, 116, 104), **LOOK),
    "rows of patches": PixelSpec((SQUARE,), aspect=(1, 1), patches=(7, 2, 2), **LOOK),
    "levels as they are": PixelSpec((SQUARE,), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0, aspect=(1, 1)),  # type: ignore[arg-type]
}


def found(spec: PixelSpec, picture: Image.Image, grid: Grid = (4, 4)) -> list[list[int]]:
    pixels = torch.from_numpy(to_pixels(spec, [picture]))
    marked: list[list[int]] = bars(blank_cells(pixels, spec, grid))[0].long().tolist()
    return marked


@pytest.mark.parametrize("name", SPECS)
def test_bars_are_found_whatever_the_form_of_the_pixels(name: str) -> None:
    assert found(SPECS[name], image(0, (56, 28))) == [[1] * 4, [0] * 4, [0] * 4, [1] * 4]
    assert found(SPECS[name], image(0, (28, 56))) == [[1, 0, 0, 1]] * 4
    assert found(SPECS[name], image(0, (56, 56))) == [[0] * 4] * 4
    # A cell that a bar covers in part shows some of the image.
    assert found(SPECS[name], image(0, (56, 40))) == [[0] * 4] * 4


def test_dark_places_inside_an_image_are_no_bars() -> None:
    picture = image(0, (56, 56))
    picture.paste((0, 0, 0), (0, 14, 42, 42))
    assert found(SPECS["squares"], picture) == [[0] * 4] * 4


@pytest.mark.parametrize(
    ("spec", "pads"),
    [
        (PixelSpec((SQUARE,), **LOOK), False),
        (PixelSpec((Picture(shortest_edge=56, crop=(56, 56)),), **LOOK), False),
        (PixelSpec((SQUARE,), aspect=(1, 2), **LOOK), True),
        (PixelSpec((Picture(shortest_edge=28, crop=(56, 56)),), **LOOK), True),
        (PixelSpec((Picture(crop=(56, 56)),), **LOOK), True),
        (PixelSpec((Picture(resize=((28, 56),), canvas=(56, 56)),), **LOOK), True),
        (PixelSpec((Picture(resize=((56, 56),), canvas=(56, 56)),), **LOOK), False),
    ],
)
def test_only_processors_that_pad_are_looked_at(spec: PixelSpec, pads: bool) -> None:
    assert spec.pads == pads


def test_a_letterboxed_image_keeps_tokens_of_the_image_alone(tmp_path: Path) -> None:
    adapter = load_adapter(
        write_tiny("qwen2_vl", tmp_path / "model", encoder_layers=2, decoder_layers=2),
        ImageOptions(image_size=(112, 112)),
    )
    rows, columns = adapter.facts.layout.view_grid
    model = compressed(adapter, {"kind": "prune", "keep": columns, "selector": "uniform"})
    wide, dark = image(0, (112, 112 // rows * 2)), Image.new("RGB", (112, 112))
    padding = padding_of(adapter, adapter.preprocess([wide, dark]))
    assert padding is not None
    kept = model.kept([[wide]], [adapter.chat("what is red ?")])[0]
    assert 0 < int(padding[0].sum()) < rows * columns
    assert not padding[0][torch.from_numpy(kept[0])].any()
    # Of an image that is all dark, nothing is to be preferred.
    assert not padding[1].any()


def test_bars_are_known_behind_a_frequency_filter(tmp_path: Path) -> None:
    adapter = load_adapter(
        write_tiny("qwen2_vl", tmp_path / "model", encoder_layers=2, decoder_layers=2),
        ImageOptions(image_size=(224, 56)),
    )
    assert adapter.facts.layout.view_grid == (8, 2)
    low_pass = {"kind": "frequency_filter", "keep": 0.25}  # 4 x 1: each token stands for two rows
    model = compressed(adapter, low_pass, {"kind": "prune", "keep": 2, "selector": "uniform"})
    square = image(0, (56, 56))  # rows 3 and 4
    (kept,) = model.kept([[square]], [adapter.chat("what is red ?")])
    assert kept.tolist() == [[1, 2]]


@pytest.mark.parametrize("selector", ["fastv", "visiondrop"])
def test_cuts_inside_the_decoder_keep_no_bar_where_there_are_separators(tmp_path: Path, selector: str) -> None:
    path = write_tiny("llava_next", tmp_path / "model", encoder_layers=2, decoder_layers=4)
    adapter = load_adapter(path, ImageOptions(image_size=(150, 60)))
    layout = adapter.facts.layout
    assert layout.tokens > layout.selectable
    model = compressed(adapter, {"kind": "prune_in_decoder", "layer": 2, "keep": 0.25, "selector": selector})
    wide = image(0, (60, 20))
    padding = padding_of(adapter, adapter.preprocess([wide]))
    assert padding is not None
    bars = torch.tensor(layout.places)[padding[0]].tolist()
    (_, (kept,)) = model.kept([[wide]], [adapter.chat("what is red ?")])
    assert 0 < len(bars) <= layout.tokens - len(kept)
    assert not set(bars) & set(kept.tolist())


@pytest.mark.parametrize(("family", "tells"), [("qwen2_vl", True), ("gemma3", False)])
def test_only_where_images_get_bars_and_cuts_follow_is_padding_told(tmp_path: Path, family: str, tells: bool) -> None:
    adapter = load_adapter(write_tiny(family, tmp_path / "model", encoder_layers=1, decoder_layers=2))
    assert adapter.pixels.pads == tells
    prune: dict[str, object] = {"kind": "prune", "keep": 0.5, "selector": "uniform"}
    assert compressed(adapter, {"kind": "prune_in_decoder", "layer": 1, "keep": 0.5}).tells_padding == tells
    assert not compressed(adapter, prune).tells_padding
    assert not compressed(adapter, prune, {"kind": "visual_exit", "layer": 1}).tells_padding
