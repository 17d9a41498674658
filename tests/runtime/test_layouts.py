"""Which layouts of a bundle a prompt may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.conftest import picture
from vtc.bundle.manifest import load_manifest
from vtc.errors import InputError
from vtc.runtime.layouts import layouts_for
from vtc.runtime.vlm import VLM


def test_an_image_alone_and_several_take_the_layouts_that_are_for_them(toy_bundle: Path) -> None:
    any_count = load_manifest(toy_bundle).images[0]
    tiles = replace(any_count, several=False)
    whole = replace(any_count, alone=False, suffix="_1")
    assert layouts_for([any_count], 1) == layouts_for([any_count], 3) == [any_count]
    assert layouts_for([tiles, whole], 1) == [tiles]
    assert layouts_for([tiles, whole], 2) == [whole]
    assert layouts_for([whole], 1) == [whole]  # as it was asked for by name
    with pytest.raises(InputError, match=r"prompt has 2 images.*--tiles 1x1"):
        layouts_for([tiles], 2)


def test_a_bundle_of_both_serves_each_prompt_its_own(toy_bundle: Path) -> None:
    bundle = VLM.load(toy_bundle, provider="cpu", threads=1)
    tiles, whole = replace(bundle.manifest.images[0], several=False), replace(bundle.manifest.images[0], alone=False)
    bundle.manifest = replace(bundle.manifest, images=(tiles, whole))
    one, two = [picture(0, (30, 40))], [picture(1, (30, 40))] * 2
    assert bundle.serve([one, one, []]) is tiles
    assert bundle.serve([two]) is whole
    with pytest.raises(InputError, match="ask about each by itself"):
        bundle.serve([one, two])
