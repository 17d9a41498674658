"""Pictures are not copied on their way, and share no memory with what may change beneath them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.runtime.conftest import picture
from vtc.inputs.pixels import Picture, PixelSpec, to_pixels
from vtc.inputs.rgb import to_rgb
from vtc.runtime.image import open_image

SPEC = PixelSpec(pictures=(Picture(shortest_edge=9, crop=(8, 8)),), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif", "frame"])
def test_upright_rgb_is_copied_nowhere(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = np.asarray(picture(0))
    if name != "frame":
        given = tmp_path / name
        picture(0).save(given)
    wanted = to_pixels(SPEC, [open_image(given)])

    def copied(image: Image.Image, *_: object) -> Image.Image:
        raise AssertionError("copied")

    monkeypatch.setattr(Image.Image, "copy", copied)
    monkeypatch.setattr(Image.Image, "convert", copied)
    image = open_image(given)
    assert open_image(image) is image
    assert to_rgb(image) is image
    np.testing.assert_array_equal(to_pixels(SPEC, [image]), wanted)


@pytest.mark.parametrize("name", ["a.webp", "a.tif", "a.png"])
def test_frames_that_are_opened_one_by_one_stay_apart(tmp_path: Path, name: str) -> None:
    frames = [picture(seed) for seed in range(3)]
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as film:
        opened = [open_image(frame) for frame in ImageSequence.Iterator(film)]
    assert [one.tobytes() for one in opened] == [frame.tobytes() for frame in frames]


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (30, 40, 4)])
def test_camera_may_fill_its_frame_anew(shape: tuple[int, ...]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for view in (frame, frame[:, ::-1], frame[..., ::-1]):
        image = open_image(view)
        before = image.tobytes()
        frame += 1
        assert image.tobytes() == before


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (30, 40)])
def test_frame_of_opencv_has_its_colours(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    part = np.pad(frame, ((0, 2), (1, 3), (0, 0)))[: size[0], 1 : size[1] + 1, ::-1]  # of a wider buffer
    for view in (frame[..., ::-1], frame[::-1, :, ::-1], frame[:, ::-1, ::-1], part, np.asfortranarray(frame)):
        np.testing.assert_array_equal(np.asarray(open_image(view)), view)


def test_opaque_picture_is_what_it_is_on_white() -> None:
    levels = np.random.default_rng(0).permutation(np.arange(256 * 6).reshape(16, 96) % 256).astype(np.uint8)
    rgba = np.stack([levels, levels.T.reshape(16, 96), 255 - levels, np.full_like(levels, 255)], axis=2)
    white = Image.new("RGBA", (96, 16), (255, 255, 255, 255))
    assert open_image(rgba).tobytes() == Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB").tobytes()
    rgba[3, 4, 3] = 0
    np.testing.assert_array_equal(np.asarray(open_image(rgba))[3, 4], [255, 255, 255])


def test_what_the_caller_has_decoded_in_part_is_taken_as_it_is(tmp_path: Path) -> None:
    picture(0, (400, 320)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("RGB", (100, 80))
        assert open_image(image).size == (100, 80)
