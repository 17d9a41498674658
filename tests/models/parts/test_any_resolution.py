"""LLaVA-NeXT and LLaVA-OneVision: other layouts, towers and decoders, what selectors read, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.families import Case, Checkpoints, compressed, pictures, prompts_of
from tests.models.own import own_inputs, own_logits, own_model, own_processor
from vtc.compressed.readings import read_tokens
from vtc.errors import InputError, ModelError
from vtc.facts.layout import Block, ImageOptions
from vtc.inputs.pixels import to_pixels
from vtc.models import load_adapter, read_facts
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.plan import plan
from vtc.recipe import Recipe
from vtc.recipe.needs import Reading

NEXT, ONEVISION = "llava_next", "llava_onevision"
SIZES = [(60, 115), (70, 90), (60, 60), (50, 140), (300, 97), (20, 20)]
"""Of images, by the shape and number of their tiles and what is padding."""
PADDED = Case(NEXT, image_options=ImageOptions(image_size=(70, 90)))
SHRUNK = Case(ONEVISION, image_options=ImageOptions(image_size=(150, 60)))
CLIP = Case(ONEVISION, image_options=ImageOptions(frames=3))
ONE_VIEW = Case(ONEVISION, image_options=ImageOptions(tiles=(1, 1)))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("families"))


def logits_are_its_own(adapter: VLMAdapter, own: Any, kind: str) -> None:
    """Logits of a prompt, and the pixels and token ids that they come of, are those of the family's own classes."""
    images, prompts = asked = prompts_of(adapter, kind)
    inputs = own_inputs(adapter.path, images, prompts)
    ids, mask, pixels = compressed(adapter).inputs(*asked)
    assert pixels is not None
    assert ids.tolist() == inputs["input_ids"].tolist()
    torch.testing.assert_close(pixels, inputs["pixel_values"].reshape(pixels.shape), atol=1e-4, rtol=0)
    with torch.inference_mode():
        ours, _ = compressed(adapter).prefill(ids, mask, pixels)
    torch.testing.assert_close(ours[:, -1], own_logits(own, inputs)[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", [NEXT, ONEVISION])
def test_images_of_any_size(checkpoints: Checkpoints, family: str, size: tuple[int, int]) -> None:
    adapter = checkpoints.adapter(Case(family, image_options=ImageOptions(image_size=size)))
    logits_are_its_own(adapter, checkpoints.own(adapter.path), "one")


@pytest.mark.parametrize("size", [(40, 90), (90, 40)])
def test_several_images_are_padded_to_squares(checkpoints: Checkpoints, size: tuple[int, int]) -> None:
    adapter = checkpoints.adapter(Case(ONEVISION, image_options=ImageOptions(image_size=size, tiles=(1, 1))))
    logits_are_its_own(adapter, checkpoints.own(adapter.path), "two")


PARTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (NEXT, {}, {"model_type": "llama"}),
    (NEXT, {}, {"sliding_window": 24}),
    (NEXT, {"vision": "siglip_vision_model"}, {"model_type": "qwen2"}),
    (ONEVISION, {"vision": "clip_vision_model"}, {"model_type": "llama"}),
]


@pytest.mark.parametrize(("family", "tower", "decoder"), PARTS)
def test_other_towers_and_decoders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, tower: dict[str, Any], decoder: dict[str, Any]
) -> None:
    kind = tower.get("vision")
    strategy = {"clip_vision_model": "default", "siglip_vision_model": "full"}.get(str(kind))

    def changed(encoder_layers: int, decoder_layers: int) -> Any:
        made = rows(encoder_layers, decoder_layers)
        if kind is None:
            return replace(made, text=made.text | decoder)
        said = {"vision_feature_select_strategy": strategy}
        # The processors count the CLS token, and take it off again.
        counts = {"num_additional_image_tokens": 0} if family == NEXT else {"num_image_tokens": 17}
        return replace(
            made,
            vision=made.vision | {"model_type": kind},
            text=made.text | decoder,
            model=made.model | said,
            processor=made.processor | said | counts,
        )

    rows = TINY_FAMILIES[family]
    monkeypatch.setitem(TINY_FAMILIES, family, changed)
    path = write_tiny(family, tmp_path / "model")
    adapter = load_adapter(path, ImageOptions(image_size=(60, 115)))
    assert adapter.facts.decoder.window == decoder.get("sliding_window", 0)
    own = own_model(path)
    images, prompts = asked = prompts_of(adapter, "one")
    ids, mask, pixels = compressed(adapter).inputs(*asked)
    inputs = own_inputs(path, images, prompts)
    assert ids.tolist() == inputs["input_ids"].tolist()
    with torch.inference_mode():
        ours, _ = compressed(adapter).prefill(ids, mask, pixels)
    torch.testing.assert_close(ours[:, -1], own_logits(own, inputs)[:, -1], atol=1e-5, rtol=1e-5)


# What selectors read ----------------------------------------------------------------------------------------------


def laid_out(views: Tensor, adapter: VLMAdapter) -> Tensor:
    """Values (V, n) of the patches of one image's views as the model lays features out, separators left out."""
    parts, first = [], 0
    for block in adapter.facts.layout.blocks:
        rows, columns = block.views
        own = views[first : first + rows * columns].reshape(rows, columns, *adapter.facts.layout.view_grid)
        picture = torch.cat([torch.cat(list(row), dim=1) for row in own])
        height, width = block.extent or block.grid
        picture = picture[block.offset[0] :, block.offset[1] :][:height, :width]
        if block.grid != (height, width):
            picture = functional.interpolate(picture[None, None], block.grid, mode="bilinear")[0, 0]
        parts.append(picture.flatten())
        first += rows * columns
    return torch.cat(parts)


@pytest.mark.parametrize("case", [PADDED, SHRUNK, CLIP], ids=str)
@pytest.mark.parametrize("layer", [0, 2])
def test_readings_are_the_towers_own_attention_and_keys(checkpoints: Checkpoints, case: Case, layer: int) -> None:
    adapter = checkpoints.adapter(case)
    own = own_model(adapter.path)
    own.set_attn_implementation("eager")  # which gives its maps out
    tower, keys = own.model.vision_tower, []
    tower.encoder.layers[layer].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
    pixels = adapter.preprocess(pictures(adapter, 1))
    cls = adapter.facts.encoder.has_cls
    with torch.inference_mode():
        out = tower(pixels[0], output_attentions=True, output_hidden_states=True)
        attention, hidden = out.attentions[layer], out.hidden_states[layer]
        expected = {"received_attention": attention.mean(dim=(1, 2))[:, cls:]}
        if cls:
            expected["cls_attention"] = attention[:, :, 0, 1:].mean(dim=1)
        for kind, values in expected.items():
            found = read_tokens(adapter, Reading(kind, layer), hidden)  # type: ignore[arg-type]
            torch.testing.assert_close(found, laid_out(values, adapter)[None], atol=1e-6, rtol=1e-4)
        found = read_tokens(adapter, Reading("full_keys", layer), hidden)
        for channel in (0, -1):
            expected_keys = laid_out(keys[0][:, cls:, channel], adapter)[None]
            torch.testing.assert_close(found[..., channel], expected_keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("selector", ["visionzip", "hiprune", "todre"])
@pytest.mark.parametrize("case", [PADDED, SHRUNK, CLIP], ids=str)
def test_exact_count_covers_what_selectors_read_of_laid_out_tokens(
    checkpoints: Checkpoints, case: Case, selector: str
) -> None:
    adapter = checkpoints.adapter(case)
    stages = [{"kind": "prune", "keep": 6, "selector": selector}]
    recipe = Recipe.model_validate({"version": 1, "name": "test", "stages": stages})
    model = compressed(adapter, *stages)
    ids, mask, pixels = model.inputs(*prompts_of(adapter, "one"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.prefill(ids, mask, pixels)
    text = int((ids != adapter.image_token_id).sum())
    assert plan(recipe, adapter.facts, text_tokens=text).flops["exact"] == counter.get_total_flops()


# Layouts ----------------------------------------------------------------------------------------------------------


def test_layouts_without_a_word(checkpoints: Checkpoints) -> None:
    for family in (NEXT, ONEVISION):
        layout = read_facts(checkpoints.path(family)).layout
        assert [block.views for block in layout.blocks] == [(1, 1), (2, 2)]
        assert layout.image_size == tuple(2 * side for side in checkpoints.adapter(Case(family)).pixels.view)


def test_a_clip_is_half_the_tokens_along_each_side_and_one_newline(checkpoints: Checkpoints) -> None:
    layout = checkpoints.adapter(CLIP).facts.layout
    assert layout.blocks == (Block((2, 2), extent=(4, 4)),) * 3
    assert (layout.tokens, layout.selectable, layout.frames) == (13, 12, 3)


def test_several_images_are_refused_where_one_is_seen_in_tiles(checkpoints: Checkpoints) -> None:
    tiles, whole = checkpoints.adapter(Case(ONEVISION)), checkpoints.adapter(ONE_VIEW)
    assert (tiles.facts.layout.alone, tiles.facts.layout.several) == (True, False)
    assert (whole.facts.layout.alone, whole.facts.layout.several) == (False, True)
    two = [pictures(tiles, 2)], [tiles.chat("what is red ?", 2)]
    with pytest.raises(InputError, match=r"prompt has 2 images.*--tiles 1x1"):
        compressed(tiles).inputs(*two)
    assert compressed(whole).inputs(*two)[2] is not None


def test_clips_without_settings_of_their_own_take_those_of_images(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = write_tiny(ONEVISION, tmp_path / "model")
    (path / "video_preprocessor_config.json").unlink()
    _, pixels = type(checkpoints.adapter(CLIP)).read(path, CLIP.image_options)
    frames = pictures(checkpoints.adapter(CLIP), 1)
    assert pixels == checkpoints.adapter(CLIP).pixels
    assert to_pixels(pixels, frames).shape == (1, 3, 3, 60, 60)


@pytest.mark.parametrize(
    ("case", "kind"),
    [(PADDED, "one"), (Case(NEXT), "one"), (Case(ONEVISION, image_options=ImageOptions(tiles=(1, 1))), "two")],
    ids=str,
)
@pytest.mark.parametrize("keep", [1, 9])
def test_the_familys_own_processor_writes_what_is_kept(
    checkpoints: Checkpoints, case: Case, kind: str, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = checkpoints.adapter(case)
    model = compressed(adapter, {"kind": "prune", "keep": keep, "selector": "uniform"})
    images, prompts = prompts_of(adapter, kind)
    settings = adapter.placeholder_settings(model.keep_per_span)
    assert settings
    for name, value in settings.items():
        monkeypatch.setattr(own_processor(adapter.path), name, value)
    ids, *_ = model.inputs(images, prompts)
    assert own_inputs(adapter.path, images, prompts)["input_ids"].tolist() == ids.tolist()


def test_an_image_of_another_shape_is_fitted_in(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(PADDED)
    tall = Image.new("RGB", (30, 90), "white")
    assert adapter.preprocess([tall]).shape == adapter.preprocess(pictures(adapter, 1)).shape


# What is refused --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, ImageOptions, str]] = [
    (NEXT, ImageOptions(frames=2), "LLaVA-NeXT takes no clips; leave out --frames"),
    (NEXT, ImageOptions(tiles=(1, 1)), r"no tiles 1x1; --tiles takes 1x2, 1x3, 2x1, 2x2, 3x1$"),
    (NEXT, ImageOptions(image_size=(4, 900)), "900 x 4 pixels are so long and thin"),
    (ONEVISION, ImageOptions(tiles=(4, 1)), "no tiles 4x1; --tiles takes 1x1, 1x2"),
    (ONEVISION, ImageOptions(frames=2, tiles=(2, 2)), "LLaVA-OneVision, of clips, does not cut"),
]


@pytest.mark.parametrize(("family", "image_options", "why"), REFUSED)
def test_what_cannot_be_served(checkpoints: Checkpoints, family: str, image_options: ImageOptions, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_facts(checkpoints.path(family), image_options)


CHANGED: list[tuple[str, str, dict[str, Any], str]] = [
    (NEXT, "preprocessor_config.json", {"image_grid_pinpoints": [[56, 112]]}, "image_grid_pinpoints of config.json"),
    (NEXT, "preprocessor_config.json", {"size": 28, "crop_size": 28}, "views of 28 x 28 pixels"),
    (NEXT, "config.json", {"vision_feature_layer": [-2, -1]}, "only one vision_feature_layer"),
    (ONEVISION, "config.json", {"vision_aspect_ratio": "square"}, "'square' is not supported; supported: anyres_max_N"),
    (ONEVISION, "config.json", {"vision_feature_select_strategy": "default"}, "strategy 'full' is supported"),
    (ONEVISION, "config.json", {"text_config": {"model_type": "gpt2"}}, "decoder 'gpt2' is not supported"),
]


@pytest.mark.parametrize(("family", "name", "changes", "why"), CHANGED)
def test_checkpoints_that_are_refused(
    tmp_path: Path, family: str, name: str, changes: dict[str, Any], why: str
) -> None:
    file = write_tiny(family, tmp_path / "model") / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=why):
        read_facts(file.parent, ImageOptions(image_size=(70, 90)))
