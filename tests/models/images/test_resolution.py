"""Sizes and tiles: those of transformers' own functions at every image size, and what must hold of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.errors import ModelError
from vtc.models.images import resolution

image_utils: Any = pytest.importorskip("transformers.image_processing_utils")
gemma3: Any = pytest.importorskip("transformers.models.gemma3.image_processing_pil_gemma3")
got_ocr2: Any = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
idefics3: Any = pytest.importorskip("transformers.models.idefics3.image_processing_pil_idefics3")
llava_next: Any = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
qwen2: Any = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
qwen3: Any = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
np: Any = pytest.importorskip("numpy")
torch: Any = pytest.importorskip("torch")

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
EDGES = st.integers(1, 5000)
SIZES = st.tuples(EDGES, EDGES)

pytestmark = pytest.mark.filterwarnings("ignore")
slow = settings(deadline=None, max_examples=200)


def test_any_resolution_of_known_images() -> None:
    wide = resolution.any_resolution((480, 640), NEXT, 336)
    assert wide == resolution.AnyResolution((672, 672), (504, 672), (84, 0), (2, 2))
    assert resolution.unpadded((480, 640), (48, 48)) == (6, 0, 36, 48)
    tall = resolution.any_resolution((900, 300), NEXT, 336)
    assert tall == resolution.AnyResolution((1008, 336), (1008, 336), (0, 0), (3, 1))


@slow
@given(size=SIZES, pinpoints=st.sampled_from([NEXT, ONEVISION, NEXT[::-1]]))
def test_canvas_and_content_are_those_of_transformers(size: tuple[int, int], pinpoints: list[list[int]]) -> None:
    tile = 384 if pinpoints is ONEVISION else 336
    lie = resolution.any_resolution(size, pinpoints, tile)
    assert lie.canvas == image_utils.select_best_resolution(size, pinpoints)
    image = np.empty((3, *size), dtype=np.uint8)
    assert lie.content == image_utils.get_patch_output_size(image, lie.canvas, "channels_first")
    assert lie.canvas in [lie.content[:1] + lie.canvas[1:], lie.canvas[:1] + lie.content[1:]]
    assert all(
        offset + content <= canvas for offset, content, canvas in zip(lie.offset, lie.content, lie.canvas, strict=True)
    )


@slow
@given(size=SIZES, tiles=st.tuples(st.integers(1, 6), st.integers(1, 6)), side=st.integers(1, 30))
def test_unpadded_grid_is_the_models(size: tuple[int, int], tiles: tuple[int, int], side: int) -> None:
    rows, columns = tiles[0] * side, tiles[1] * side
    places = torch.arange(rows * columns).view(1, rows, columns)
    kept = llava_next.unpad_image(places, size)[0]
    top, left, height, width = resolution.unpadded(size, (rows, columns))
    assert kept.shape == (height, width)
    assert torch.equal(kept, places[0, top : top + height, left : left + width])


@given(size=SIZES, tiles=st.tuples(st.integers(1, 6), st.integers(1, 6)), limit=st.integers(1, 9))
def test_interpolated_grid_fits_the_limit_nearly(size: tuple[int, int], tiles: tuple[int, int], limit: int) -> None:
    grid = resolution.unpadded(size, (27 * tiles[0], 27 * tiles[1]))[2:]
    small = resolution.interpolated(grid, 27, limit)
    assert small[0] * small[1] <= 1.1**2 * limit * 27**2
    if grid[0] * grid[1] <= limit * 27**2:
        assert small == grid


@slow
@given(size=SIZES, tiles=st.tuples(st.integers(1, 6), st.integers(1, 6)), limit=st.integers(1, 9))
def test_tokens_are_those_that_the_processors_count(size: tuple[int, int], tiles: tuple[int, int], limit: int) -> None:
    """Tokens of the tiles, and the end of line that follows each row of them."""
    next_processor = pytest.importorskip("transformers.models.llava_next.processing_llava_next").LlavaNextProcessor
    module = pytest.importorskip("transformers.models.llava_onevision.processing_llava_onevision")
    *_, rows, columns = resolution.unpadded(size, (27 * tiles[0], 27 * tiles[1]))
    assert next_processor._get_unpadded_features(None, *size, 27, 27, *tiles) == (rows * columns, rows)
    limited = SimpleNamespace(vision_aspect_ratio=f"anyres_max_{limit}")
    count = module.LlavaOnevisionProcessor._get_unpadded_features
    rows, columns = resolution.interpolated((rows, columns), 27, limit)
    assert count(limited, *size, 27, 27, *tiles) == (rows * columns, rows)


def test_interpolated_grid_of_a_known_image() -> None:
    # Six by six tiles of 27 by 27 tokens, to the tokens of nine tiles.
    assert resolution.interpolated((162, 162), 27, 9) == (81, 81)
    assert resolution.interpolated((81, 97), 27, 9) == (81, 97)


@slow
@given(
    size=SIZES,
    factor=st.sampled_from([28, 32, 56]),
    bounds=st.sampled_from([(3136, 1003520), (65536, 16777216), (200704, 200704), (1, 50_000)]),
)
def test_smart_resize_is_qwens(size: tuple[int, int], factor: int, bounds: tuple[int, int]) -> None:
    least, most = bounds
    if max(size) / min(size) > 200:
        with pytest.raises(ModelError, match="200 times"):
            resolution.smart_resize(size, factor, least, most)
        return
    wanted = qwen2.smart_resize(*size, factor=factor, min_pixels=least, max_pixels=most)
    if min(wanted) == 0:
        with pytest.raises(ModelError, match="half a block"):
            resolution.smart_resize(size, factor, least, most)
        return
    assert resolution.smart_resize(size, factor, least, most) == wanted
    assert not any(edge % factor for edge in wanted)


@slow
@given(size=SIZES, frames=st.integers(1, 40), bounds=st.sampled_from([(131072, 786432), (4096, 10_000_000)]))
def test_smart_resize_of_clips_is_qwen3s(size: tuple[int, int], frames: int, bounds: tuple[int, int]) -> None:
    try:
        wanted = qwen3.smart_resize(frames, *size, 2, 32, *bounds)
    except ValueError:
        with pytest.raises(ModelError):
            resolution.smart_resize_clip(size, frames, 32, 2, *bounds)
        return
    assert resolution.smart_resize_clip(size, frames, 32, 2, *bounds) == wanted


@slow
@given(size=SIZES, least=st.integers(1, 3), more=st.integers(0, 12), tile=st.sampled_from([(448, 448), (56, 112)]))
def test_tile_grid_is_internvls(size: tuple[int, int], least: int, more: int, tile: tuple[int, int]) -> None:
    columns, rows = got_ocr2.get_optimal_tiled_canvas(size, tile, least, least + more)
    assert resolution.tile_grid(size, tile, least, least + more) == (rows, columns)


@given(tiles=st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda tiles: tiles[0] * tiles[1] <= 12))
def test_image_of_whole_tiles_is_cut_into_those(tiles: tuple[int, int]) -> None:
    size = tiles[0] * 448, tiles[1] * 448
    assert resolution.tile_grid(size, (448, 448), 1, 12) == tiles
    canvases = [[rows * 448, columns * 448] for rows in range(1, 13) for columns in range(1, 13)]
    assert resolution.any_resolution(size, canvases, 448).tiles == tiles


@slow
@given(size=SIZES, edge=st.sampled_from([364, 512, 1456, 2048, 5000]))
def test_longest_edge_is_idefics3s(size: tuple[int, int], edge: int) -> None:
    image = np.empty((3, *size), dtype=np.uint8)
    assert resolution.longest_edge(size, edge) == idefics3.get_resize_output_image_size(image, edge)


@slow
@given(size=SIZES, tile=st.sampled_from([56, 364, 512]))
def test_whole_tiles_are_idefics3s(size: tuple[int, int], tile: int) -> None:
    class Processor(idefics3.Idefics3ImageProcessorPil):  # type: ignore[misc]
        def resize(self, image: Any, size: Any, **_: Any) -> Any:
            return size.height, size.width

    image = np.empty((3, *size), dtype=np.uint8)
    rows, columns = resolution.whole_tiles(size, tile)
    assert (rows, columns) == Processor().resize_for_vision_encoder(image, tile)
    assert rows % tile == columns % tile == 0


@slow
@given(
    size=st.tuples(st.integers(12, 3000), st.integers(12, 3000)),
    least=st.sampled_from([1, 16, 256]),
    most=st.integers(2, 4),
    ratio=st.sampled_from([1.0, 1.2, 2.0]),
)
def test_crops_are_gemma3s(size: tuple[int, int], least: int, most: int, ratio: float) -> None:
    places = np.arange(size[0] * size[1]).reshape(1, *size)
    wanted = gemma3.Gemma3ImageProcessorPil().pan_and_scan(places, least, most, ratio)
    crops = resolution.pan_and_scan(size, least, most, ratio)
    assert crops[0] * crops[1] == len(wanted)
    boxes = resolution.crop_boxes(size, crops)
    for (top, left, bottom, right), crop in zip(boxes, wanted, strict=True):
        rows, columns = slice(round(top * size[0]), round(bottom * size[0])), slice(round(left * size[1]), None)
        ours = places[0, rows, columns][:, : round(right * size[1]) - round(left * size[1])]
        assert ours.shape == crop.shape[1:]
        assert (ours == crop[0]).all()


def test_canvases_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ModelError, match="is empty"):
        resolution.any_resolution((10, 10), [], 336)
    with pytest.raises(ModelError, match="does not divide"):
        resolution.any_resolution((10, 10), NEXT, 224)
    with pytest.raises(ModelError, match="too short"):
        resolution.smart_resize_clip((64, 64), 1, 32, 2, 1, 10**6)
