"""The executor: what each step of a description does, and that a description survives JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from vtc.errors import InputError
from vtc.inputs import pixels
from vtc.inputs.pixels import Picture, PixelSpec, to_pixels

LEVELS: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "rescale_factor": 1.0}
"""Pixels that are the grey levels themselves."""


def spec(*pictures: Picture, **fields: Any) -> PixelSpec:
    return PixelSpec(pictures=pictures, **{**LEVELS, **fields})


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    """(3, H, W)."""
    return np.asarray(image).transpose(2, 0, 1)


def test_levels_are_rescaled_and_normalised_by_channel() -> None:
    one = spec(Picture(resize=((4, 6),)), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), rescale_factor=1 / 255)
    image = noise(4, 6)
    wanted = (levels(image) / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.25, 2])[:, None, None]
    np.testing.assert_allclose(to_pixels(one, [image])[0], wanted, atol=1e-6)


def test_resizes_follow_each_other() -> None:
    image = noise(30, 20)
    steps = spec(Picture(resize=((9, 50), (8, 8))), resample=1)
    lanczos = Image.Resampling.LANCZOS
    wanted = image.resize((50, 9), lanczos).resize((8, 8), lanczos)
    np.testing.assert_array_equal(to_pixels(steps, [image])[0], levels(wanted))
    once = spec(Picture(resize=((8, 8),)), resample=1)
    assert (to_pixels(once, [image]) != to_pixels(steps, [image])).any()


def test_views_come_picture_by_picture_and_tiles_row_by_row() -> None:
    image = noise(4, 6)
    views = to_pixels(spec(Picture(resize=((2, 2),)), Picture(resize=((4, 6),), tiles=(2, 3))), [image, image])
    assert views.shape == (2, 7, 3, 2, 2)
    np.testing.assert_array_equal(views[0, 0], levels(image.resize((2, 2), Image.Resampling.BICUBIC)))
    whole = levels(image)
    for tile in range(6):
        row, column = divmod(tile, 3)
        wanted = whole[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(views[1, 1 + tile], wanted)


def test_canvas_has_the_picture_at_its_offset_and_background_around_it() -> None:
    image = noise(3, 4)
    placed = spec(Picture(resize=((3, 4),), canvas=(6, 8), offset=(2, 1)), background=(7, 8, 9))
    out = to_pixels(placed, [image])[0]
    np.testing.assert_array_equal(out[:, 2:5, 1:5], levels(image))
    out[:, 2:5, 1:5] = np.array([7, 8, 9])[:, None, None]
    assert (out == np.array([7, 8, 9])[:, None, None]).all()


def test_box_is_cut_before_the_resize() -> None:
    image = noise(10, 20)
    cut = spec(Picture(box=(0, 0.25, 0.5, 0.75), resize=((5, 10),)))
    np.testing.assert_array_equal(to_pixels(cut, [image])[0], levels(image)[:, :5, 5:15])
    sliver = spec(Picture(box=(0.9, 0.9, 1, 1), resize=((2, 2),)))
    assert to_pixels(sliver, [Image.new("RGB", (1, 1), (5, 5, 5))]).max() == 5


def test_image_of_another_aspect_ratio_is_centred_on_background() -> None:
    wide = spec(Picture(resize=((6, 12),)), aspect=(1, 2), background=(1, 2, 3))
    image = noise(6, 4)
    out = to_pixels(wide, [image])[0]
    np.testing.assert_array_equal(out[:, :, 4:8], levels(image))
    assert (out[:, :, :4] == np.array([1, 2, 3])[:, None, None]).all()
    assert (out[:, :, 8:] == np.array([1, 2, 3])[:, None, None]).all()
    tall = noise(2, 12)
    np.testing.assert_array_equal(to_pixels(wide, [tall])[0][:, 2:4], levels(tall))


@given(
    aspect=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    scale=st.floats(0.05, 4),
    up=st.tuples(st.booleans(), st.booleans()),
)
def test_copy_of_the_nominal_image_is_padded_by_no_more_than_its_rounding(
    aspect: tuple[int, int], scale: float, up: tuple[bool, bool]
) -> None:
    height, width = (max(int(edge * scale) + above, 1) for edge, above in zip(aspect, up, strict=True))
    rows, columns = pixels._padded(height, width, aspect)
    assert rows >= height
    assert columns >= width
    assert rows == height or columns == width
    ratio = aspect[1] / aspect[0]
    assert columns - width <= 1 + ratio
    assert rows - height <= 1 + 1 / ratio


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_strip_is_not_padded_to_a_canvas_that_does_not_fit_in_memory(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    strip = Image.new("RGB", size, (255, 255, 255))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 10_000)
    made: list[tuple[int, int]] = []
    new = Image.new

    def watched(mode: str, size: tuple[int, int], *rest: Any) -> Image.Image:
        made.append(size)
        return new(mode, size, *rest)

    monkeypatch.setattr(Image, "new", watched)
    square = spec(Picture(resize=((8, 8),)), aspect=(1, 1))
    assert to_pixels(square, [strip]).shape == (1, 3, 8, 8)
    assert [width * height <= 10_000 for width, height in made] == [True]


def test_rows_of_patches_go_block_by_block() -> None:
    flat = spec(Picture(resize=((8, 12),)), patches=(2, 2, 2))
    image = noise(8, 12)
    rows = to_pixels(flat, [image])[0]
    assert flat.patch_grid == (1, 4, 6)
    assert rows.shape == flat.shape == (24, 3 * 2 * 2 * 2)
    whole = levels(image)
    places = [
        (2 * block_row + row, 2 * block_column + column)
        for block_row in range(2)
        for block_column in range(3)
        for row in range(2)
        for column in range(2)
    ]
    for values, (row, column) in zip(rows, places, strict=True):
        patch = whole[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(values.reshape(3, 2, 2, 2), np.stack([patch, patch], axis=1))


def test_clip_is_one_input_of_its_frames() -> None:
    frames = [noise(4, 4, seed) for seed in range(6)]
    clip = spec(Picture(resize=((4, 4),)), frames=3)
    out = to_pixels(clip, frames)
    assert out.shape == (2, *clip.shape) == (2, 3, 3, 4, 4)
    np.testing.assert_array_equal(out.reshape(6, 3, 4, 4), np.stack([levels(frame) for frame in frames]))
    with pytest.raises(InputError, match="clips of 3 frames"):
        to_pixels(clip, frames[:4])


def test_clip_in_patches_pairs_frames_and_repeats_the_last() -> None:
    frames = [noise(4, 4, seed) for seed in range(3)]
    clip = spec(Picture(resize=((4, 4),)), frames=3, patches=(2, 2, 2))
    assert clip.patch_grid == (2, 2, 2)
    rows = to_pixels(clip, frames)[0].reshape(2, 4, 3, 2, 2, 2)
    for step, pair in enumerate([(0, 1), (2, 2)]):
        for place, frame in enumerate(pair):
            wanted = levels(frames[frame]).reshape(3, 2, 2, 2, 2).transpose(1, 3, 0, 2, 4).reshape(4, 3, 2, 2)
            np.testing.assert_array_equal(rows[step, :, :, place], wanted)


def test_no_images_are_no_inputs() -> None:
    assert to_pixels(spec(Picture(resize=((4, 4),))), []).shape == (0, 3, 4, 4)


SPECS = [
    spec(Picture(shortest_edge=9, crop=(8, 8))),
    spec(
        Picture(resize=((4, 4),)),
        Picture(box=(0, 0, 0.5, 1), resize=((3, 9), (7, 8)), canvas=(8, 8), offset=(1, 0), tiles=(2, 2)),
        aspect=(3, 4),
        background=(1, 2, 3),
    ),
    spec(Picture(resize=((8, 8),)), patches=(2, 2, 2), frames=4),
]


@pytest.mark.parametrize("wanted", SPECS)
def test_description_survives_json(wanted: PixelSpec) -> None:
    assert TypeAdapter(PixelSpec).validate_json(json.dumps(asdict(wanted)), strict=True) == wanted


@pytest.mark.parametrize(
    ("picture", "fields"),
    [
        ({"resize": ()}, {}),
        ({"resize": ((0, 4),)}, {}),
        ({"resize": ((2**16, 2**16),)}, {}),
        ({"resize": (), "shortest_edge": 5}, {}),
        ({"canvas": (3, 8)}, {}),
        ({"canvas": (4, 4), "offset": (0, 1)}, {}),
        ({"canvas": (5, 5), "offset": (-1, 0)}, {}),
        ({"tiles": (3, 1)}, {}),
        ({"tiles": (0, 1)}, {}),
        ({"box": (0.5, 0, 0.5, 1)}, {}),
        ({}, {"pictures": ()}),
        ({}, {"std": (1.0, 0.0, 1.0)}),
        ({}, {"mean": (float("nan"), 0.0, 0.0)}),
        ({}, {"resample": 17}),
        ({}, {"aspect": (0, 1)}),
        ({}, {"background": (0, 0, 256)}),
        ({}, {"patches": (3, 2, 1)}),
        ({}, {"frames": 0}),
        ({"tiles": (2, 1)}, {"frames": 2}),
        ({"tiles": (2, 1)}, {"patches": (2, 1, 1)}),
    ],
)
def test_description_that_cannot_be_done_is_refused(picture: dict[str, Any], fields: dict[str, Any]) -> None:
    """Where it is made, and where it is read from a manifest."""
    data = {"pictures": ({"resize": ((4, 4),), **picture},), **LEVELS, **fields}
    with pytest.raises(ValueError, match="pixels with"):
        PixelSpec(**{**data, "pictures": tuple(Picture(**one) for one in data["pictures"])})
    with pytest.raises(ValidationError):
        TypeAdapter(PixelSpec).validate_json(json.dumps(data), strict=True)


def test_views_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        spec(Picture(resize=((4, 4),)), Picture(resize=((4, 5),)))
