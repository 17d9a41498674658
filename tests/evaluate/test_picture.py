"""Pictures of kept tokens show the pixels that the model sees, and frame exactly what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from tests.tiny import IMAGE, image
from vtc.evaluate.picture import FRAME, MARGIN, PANEL, Panel, draw, seen_by_model, wrapped
from vtc.inputs.pixels import Picture, PixelSpec, to_pixels
from vtc.models.base import VLMAdapter


def test_normalisation_is_undone(adapter: VLMAdapter) -> None:
    picture = image(3)
    seen = seen_by_model(lambda images: adapter.preprocess(images).numpy(), picture)
    assert seen.shape == (IMAGE, IMAGE, 3)
    assert np.abs(seen.astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_kept_tokens_are_framed_and_the_others_pale() -> None:
    pixels = np.zeros((56, 56, 3), dtype=np.uint8)
    pixels[..., 2] = 200
    sheet = np.asarray(draw(pixels, (4, 4), [Panel("all"), Panel("two", np.array([0, 6]))]))
    side = PANEL // 4
    left = MARGIN + PANEL + MARGIN
    for place in range(16):
        row, column = divmod(place, 4)
        y, x = MARGIN + row * side, left + column * side
        centre, corner = sheet[y + side // 2, x + side // 2], sheet[y, x]
        assert (tuple(corner) == FRAME) == (place in (0, 6))
        assert (tuple(centre) == (0, 0, 200)) == (place in (0, 6))


def test_a_panel_without_a_choice_is_the_image() -> None:
    pixels = np.asarray(Image.new("RGB", (56, 56), (9, 90, 200)))
    sheet = np.asarray(draw(pixels, (4, 4), [Panel("all")], "title"))
    assert (sheet[PANEL // 2, MARGIN + PANEL // 2] == (9, 90, 200)).all()


def test_bars_around_an_image_are_drawn_as_they_are() -> None:
    spec = PixelSpec(
        (Picture(resize=((56, 56),)),), (0.48,) * 3, (0.27,) * 3, aspect=(1, 1), background=(122, 116, 104)
    )
    with np.errstate(all="raise"):
        seen = seen_by_model(lambda images: to_pixels(spec, images), Image.new("RGB", (56, 28), (200, 10, 60)))
    assert np.abs(seen[0, 0].astype(int) - (122, 116, 104)).max() <= 1
    assert np.abs(seen[28, 28].astype(int) - (200, 10, 60)).max() <= 1


@pytest.mark.parametrize("words", ["what is " * 80, "w" * 300, "a " + "w" * 200 + " b", ""])
def test_long_texts_stay_inside_the_picture(words: str) -> None:
    font = ImageFont.load_default(size=15)
    lines = wrapped(words, PANEL, font)
    assert all(font.getlength(line) <= PANEL for line in lines)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    blank, titled = (draw(np.zeros((56, 56, 3), np.uint8), (4, 4), [Panel("all")], title) for title in ("", words))
    assert titled.width == blank.width
    assert titled.height >= blank.height
