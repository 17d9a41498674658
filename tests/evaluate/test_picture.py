"""Pictures of kept tokens show the pixels that the model sees, and frame exactly what is kept."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.tiny import IMAGE, image
from vtc.evaluate.picture import FRAME, MARGIN, PANEL, Panel, draw, seen_by_model
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
