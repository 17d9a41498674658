"""Which layout a prompt takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.conftest import picture
from vtc.errors import InputError
from vtc.inputs.layouts import Offer, layouts_of
from vtc.runtime.vlm import VLM

ONE, TWO = [picture(0, (30, 40))], [picture(1, (30, 40))] * 2


def test_an_image_alone_and_several_take_the_layouts_that_are_for_them() -> None:
    any_count, tiles, whole = Offer((30, 40)), Offer((30, 40), several=False), Offer((30, 40), alone=False)
    assert layouts_of([ONE, TWO, []], [any_count]) == [0, 0, 0]
    assert layouts_of([ONE, TWO, []], [tiles, whole]) == [0, 1, 0]
    assert layouts_of([ONE], [whole]) == [0]  # as it was asked for by name
    with pytest.raises(InputError, match=r"prompt has 2 images.*--tiles 1x1"):
        layouts_of([TWO], [tiles])


def test_frames_of_a_clip_are_one_input() -> None:
    clips = Offer((30, 40), frames=2, several=False)
    assert layouts_of([TWO], [clips]) == [0]
    with pytest.raises(InputError, match="prompt has 2 images"):
        layouts_of([TWO * 2], [clips])


def test_of_layouts_that_fit_the_nearest_in_shape_then_in_size_is_taken() -> None:
    offers = [Offer((40, 40)), Offer((40, 80)), Offer((400, 800))]
    sizes = [(40, 40), (39, 80), (300, 620), (900, 880)]
    assert layouts_of([[Image.new("RGB", (width, height))] for height, width in sizes], offers) == [0, 1, 2, 0]


def test_a_bundle_of_both_serves_each_prompt_its_own(toy_bundle: Path) -> None:
    bundle = VLM.load(toy_bundle, provider="cpu", threads=1)
    tiles, whole = replace(bundle.manifest.images[0], several=False), replace(bundle.manifest.images[0], alone=False)
    bundle.manifest = replace(bundle.manifest, images=(tiles, whole))
    assert bundle.serve([ONE, ONE, []]) is tiles
    assert bundle.serve([TWO]) is whole
    with pytest.raises(InputError, match="ask about each by itself"):
        bundle.serve([ONE, TWO])
