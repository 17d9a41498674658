"""Pixels of every kind of image processor are those of transformers' own, at every shape of image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import picture
from vtc.errors import ModelError
from vtc.inputs import pixels
from vtc.inputs.pixels import Picture, to_pixels

transformers: Any = pytest.importorskip("transformers")
pixel_specs: Any = pytest.importorskip("vtc.models.images.pixel_specs")
pixel_spec = pixel_specs.pixel_spec

TOLERANCE = 1e-4

SIZES = {
    "landscape": (60, 90),
    "portrait": (150, 70),
    "square": (112, 112),
    "tiny": (5, 7),
    "less than a tile": (20, 20),
    "odd": (101, 33),
    "wide": (40, 391),
    "large": (301, 407),
}

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [84, 84]]
SQUARE = {"height": 28, "width": 28}

SETTINGS: dict[str, dict[str, Any]] = {
    "CLIP": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": SQUARE,
    },
    "SigLIP": {"image_processor_type": "SiglipImageProcessorFast", "size": SQUARE, "resample": 2},
    "LLaVA-NeXT": {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": SQUARE,
        "image_grid_pinpoints": PINPOINTS,
    },
    "LLaVA-OneVision": {
        "image_processor_type": "LlavaOnevisionImageProcessorFast",
        "size": SQUARE,
        "image_grid_pinpoints": PINPOINTS,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "Qwen2": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 7,
        "min_pixels": 14 * 14 * 4,
        "max_pixels": 14 * 14 * 40,
    },
    "Qwen3": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 4096, "longest_edge": 65536},
    },
    "InternVL": {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": SQUARE,
        "crop_to_patches": True,
        "max_patches": 6,
    },
    "InternVL, one tile": {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE},
    "Idefics3": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 112},
        "max_image_size": {"longest_edge": 28},
    },
    "Idefics3, ragged": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 100},
        "max_image_size": {"longest_edge": 28},
    },
    "Idefics3, whole": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 112},
        "max_image_size": {"longest_edge": 28},
        "do_image_splitting": False,
    },
    "Idefics3, no first resize": {
        "image_processor_type": "Idefics3ImageProcessor",
        "max_image_size": {"longest_edge": 28},
        "do_resize": False,
    },
    "SmolVLM": {
        "image_processor_type": "SmolVLMImageProcessorFast",
        "size": {"longest_edge": 56},
        "max_image_size": {"longest_edge": 28},
    },
    "SmolVLM, one tile": {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": 28},
        "max_image_size": {"longest_edge": 28},
    },
    "Gemma 3": {"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
    "Gemma 3, pan and scan": {
        "image_processor_type": "Gemma3ImageProcessorFast",
        "size": SQUARE,
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 8,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    },
}

TILED = ["LLaVA-NeXT", "LLaVA-OneVision", "InternVL", "Idefics3", "SmolVLM"]


def processor(settings: dict[str, Any]) -> Any:
    kind = settings["image_processor_type"].removesuffix("Fast")
    return getattr(transformers, f"{kind}Pil").from_dict(dict(settings))


def theirs(settings: dict[str, Any], image: Any, **call: Any) -> np.ndarray[Any, Any]:
    """Pixels (views, 3, H, W), or rows of patches."""
    found = processor(settings)(images=[image], return_tensors="np", **call)["pixel_values"]
    found = np.asarray(found, dtype=np.float32)
    return found[0] if found.ndim == 5 else found


def views(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first input's pixels with the axis of views that a single view has not."""
    return pixels if pixels.ndim == 4 else pixels[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", SETTINGS)
def test_pixels_are_those_of_transformers(kind: str, size: str) -> None:
    height, width = SIZES[size]
    image = picture(height, (width, height))
    spec = pixel_spec(SETTINGS[kind], (height, width))
    ours = to_pixels(spec, [image])
    assert ours.shape == (1, *spec.shape)
    wanted = theirs(SETTINGS[kind], image)
    assert views(ours).shape == wanted.shape
    np.testing.assert_allclose(views(ours), wanted, atol=TOLERANCE)


SHAPES = [(1, 1), (2, 2), (3, 90), (224, 224), (223, 225), (640, 480), (333, 777), (31, 20), (60, 40)]
ONE_VIEW: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "LLaVA-1.5": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "exact size": {"size": {"height": 50, "width": 70}, "do_center_crop": False},
    "odd crop": {"size": {"height": 50, "width": 70}, "crop_size": {"height": 51, "width": 41}},
    "longest edge": {
        "size": {"shortest_edge": 40, "longest_edge": 600},
        "crop_size": {"height": 53, "width": 52},
    },
    "bilinear": {"resample": 2, "size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}},
    "crop only": {"do_resize": False, "crop_size": {"height": 30, "width": 31}},
    "no normalisation": {"do_normalize": False},
    "no rescaling": {"do_rescale": False},
}


@pytest.mark.parametrize("config", ONE_VIEW)
def test_one_view_is_exactly_that_of_transformers(config: str) -> None:
    theirs = transformers.CLIPImageProcessorPil(**ONE_VIEW[config])
    ours = pixel_spec(theirs.to_dict())
    for size in [*SHAPES, (3, 1000), (1000, 3)] if config == "CLIP" else SHAPES:
        image = picture(sum(size), size)
        wanted = np.asarray(theirs(images=[image], return_tensors="np")["pixel_values"])
        np.testing.assert_array_equal(to_pixels(ours, [image]), wanted.astype(np.float32), err_msg=str(size))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_colour_modes_become_what_transformers_makes_of_them(mode: str) -> None:
    theirs = transformers.CLIPImageProcessorPil()
    image = picture(0, (50, 60)).convert("RGBA") if mode in ("LA", "RGBA") else picture(0, (50, 60))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize((50, 60)))
    image = image.convert(mode)
    wanted = np.asarray(theirs(images=[image], return_tensors="np")["pixel_values"])
    np.testing.assert_array_equal(to_pixels(pixel_spec(theirs.to_dict()), [image]), wanted)


def test_very_long_image_is_never_resized_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pixel_spec(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "do_normalize": False,
            "do_rescale": False,
        }
    )
    for size in ((3, 1001), (1001, 7), (1, 900), (100, 90)):
        image = picture(1, size)
        whole = to_pixels(spec, [image])
        with monkeypatch.context() as patched:
            patched.setattr(pixels, "MAX_RESIZED_PIXELS", 0)
            assert np.abs(to_pixels(spec, [image]) - whole).max() <= 1
    assert to_pixels(spec, [Image.new("RGB", (1, 2_000_000), (1, 2, 3))]).mean() == 2


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_cut_images_into_tiles_or_not(kind: str) -> None:
    """Guards the test above: layouts of these settings differ where the processor has several."""
    layouts = {pixel_spec(SETTINGS[kind], size).shape for size in SIZES.values()}
    several = kind in TILED or kind.startswith("Qwen") or kind.endswith(("scan", "ragged", "no first resize"))
    assert (len(layouts) > 1) == several


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "InternVL", "InternVL, one tile"])
def test_count_is_the_processors(kind: str) -> None:
    for size in SIZES.values():
        spec = pixel_spec(SETTINGS[kind], size)
        count = np.prod(spec.patch_grid) if spec.patches else spec.views
        assert count == processor(SETTINGS[kind]).get_number_of_image_patches(*size)


@pytest.mark.parametrize("kind", ["Idefics3", "SmolVLM"])
def test_tiles_are_those_that_idefics3_counts(kind: str) -> None:
    for size in SIZES.values():
        spec = pixel_spec(SETTINGS[kind], size)
        views, rows, columns = processor(SETTINGS[kind]).get_number_of_image_patches(*size)
        assert spec.views == max(views, 1)
        assert spec.pictures[0].tiles == (max(rows, 1), max(columns, 1))


def test_grid_is_qwens() -> None:
    for size in SIZES.values():
        spec = pixel_spec(SETTINGS["Qwen2"], size)
        found = processor(SETTINGS["Qwen2"])(images=[picture(0, size[::-1])], return_tensors="np")
        assert spec.patch_grid == tuple(found["image_grid_thw"][0])


@pytest.mark.parametrize("kind", sorted(set(pixel_specs.KINDS) - set(pixel_specs.CLIPS)))
def test_missing_settings_take_the_classes_own(kind: str) -> None:
    """Where the class's own defaults make a layout at all."""
    settings = {"image_processor_type": kind}
    if kind == "LlavaNextImageProcessor":  # its own tiles do not divide its own canvases
        settings |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}  # type: ignore[dict-item]
    image = picture(1, (500, 300))
    wanted = theirs(settings, image)
    np.testing.assert_allclose(views(to_pixels(pixel_spec(settings, (300, 500)), [image])), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("tiles", [(1, 2), (2, 1), (2, 2)])
def test_tiles_alone_are_the_layout_of_an_image_of_so_many(kind: str, tiles: tuple[int, int]) -> None:
    spec = pixel_spec(SETTINGS[kind], tiles=tiles)
    size = tiles[0] * 28, tiles[1] * 28
    image = picture(3, size[::-1])
    assert [one.tiles for one in spec.pictures if one.tiles != (1, 1)] == [tiles]
    call = {"size": {"longest_edge": 28 * max(tiles)}} if kind in ("Idefics3", "SmolVLM") else {}
    np.testing.assert_allclose(to_pixels(spec, [image])[0], theirs(SETTINGS[kind], image, **call), atol=TOLERANCE)


def test_tiles_hold_for_any_image_size() -> None:
    for kind in TILED:
        spec = pixel_spec(SETTINGS[kind], (61, 100), tiles=(2, 1))
        assert spec.views == 3
        assert spec.aspect == (61, 100)
    crops = pixel_spec(SETTINGS["Gemma 3"], (61, 100), tiles=(1, 2))
    assert crops.views == 3


def test_one_of_several_images_is_padded_to_a_square_by_onevision() -> None:
    settings = SETTINGS["LLaVA-OneVision"] | {"image_mean": [0.1, 0.5, 0.9]}
    spec = pixel_spec(settings, tiles=(0, 0))
    assert spec.shape == (3, 28, 28)
    images = [picture(seed, size[::-1]) for seed, size in enumerate(SIZES.values())]
    wanted = processor(settings)(images=[images], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(to_pixels(spec, images), np.asarray(wanted).reshape(-1, 3, 28, 28), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["InternVL", "Idefics3", "SmolVLM"])
def test_whole_image_is_the_processors_without_its_switch(kind: str) -> None:
    switch = "crop_to_patches" if kind == "InternVL" else "do_image_splitting"
    image = picture(1, (90, 60))
    spec = pixel_spec(SETTINGS[kind], (60, 90), tiles=(0, 0))
    wanted = theirs(SETTINGS[kind] | {switch: False}, image)
    np.testing.assert_allclose(to_pixels(spec, [image]), wanted, atol=TOLERANCE)
    assert spec.aspect is None


def test_clip_of_qwen_pairs_frames() -> None:
    frames = [picture(seed, (90, 60)) for seed in range(3)]
    one = to_pixels(pixel_spec(SETTINGS["Qwen2"], (60, 90)), frames)
    spec = pixel_spec(SETTINGS["Qwen2"], (60, 90), frames=3)
    clip = to_pixels(spec, frames)[0].reshape(2, -1, 3, 2, 7, 7)
    stills = one.reshape(3, -1, 3, 2, 7, 7)[:, :, :, 0]
    wanted = np.stack([np.stack([stills[a], stills[b]], axis=2) for a, b in [(0, 1), (2, 2)]])
    np.testing.assert_array_equal(clip, wanted)
    assert spec.patch_grid[0] == 2


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_smolvlm_are_its_images_uncut(size: str) -> None:
    height, width = SIZES[size]
    frames = [picture(seed, (width, height)) for seed in range(3)]
    settings = SETTINGS["SmolVLM"] | {"size": {"longest_edge": 90}}
    spec = pixel_spec(settings | {"video_processor_type": "SmolVLMVideoProcessor"}, (height, width), frames=3)
    wanted = [theirs(settings | {"do_image_splitting": False}, frame)[0] for frame in frames]
    np.testing.assert_allclose(to_pixels(spec, frames)[0], np.stack(wanted), atol=TOLERANCE)


def test_video_settings_bound_clips() -> None:
    qwen2 = pixel_spec({"video_processor_type": "Qwen2VLVideoProcessor"}, (360, 640), frames=4)
    assert qwen2.patch_grid == (2, 26, 46)
    qwen3 = {"video_processor_type": "Qwen3VLVideoProcessor"}
    assert pixel_spec(qwen3, (360, 640), frames=4).patch_grid == (2, 20, 36)
    # A longer clip has smaller frames: the bound is on all of them together.
    assert pixel_spec(qwen3, (360, 640), frames=40).patch_grid == (20, 6, 10)
    onevision = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": SQUARE}
    assert pixel_spec(onevision, frames=8).shape == (8, 3, 28, 28)
    smolvlm = {"video_processor_type": "SmolVLMVideoProcessor"}
    assert pixel_spec(smolvlm, (360, 640), frames=8).pictures == (Picture(resize=((820, 1456), (364, 364))),)
    with pytest.raises(ModelError, match="do_resize is off"):
        pixel_spec(smolvlm | {"do_resize": False}, (360, 640), frames=8)
    with pytest.raises(ModelError, match="cap_pixels_per_frame"):
        pixel_spec(qwen3 | {"cap_pixels_per_frame": True}, (360, 640), frames=4)


def test_defaults_of_video_settings_are_the_classes() -> None:
    """Of the one whose class loads without torchvision."""
    qwen3: Any = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    _, changes = pixel_specs.CLIPS["Qwen3VLVideoProcessor"]
    assert changes == {name: getattr(qwen3.Qwen3VLVideoProcessor, name) for name in changes}


def test_image_of_any_shape_is_served() -> None:
    for kind, settings in SETTINGS.items():
        spec = pixel_spec(settings, (60, 90))
        for size in [(1, 1), (3, 400), (400, 3), (90, 60)]:
            assert np.isfinite(to_pixels(spec, [picture(0, size)])).all(), kind


def test_only_processors_that_look_at_the_shape_pad() -> None:
    padding = {kind for kind, settings in SETTINGS.items() if pixel_spec(settings, (60, 90)).aspect == (60, 90)}
    wanted = {kind for kind in SETTINGS if kind in TILED or kind.startswith("Qwen")}
    wanted |= {"Idefics3, ragged", "Idefics3, no first resize", "SmolVLM, one tile", "Gemma 3, pan and scan"}
    assert padding == wanted


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda: pixel_spec({"image_processor_type": "PixtralImageProcessor"}), "is not known"),
        (lambda: pixel_spec(SETTINGS["CLIP"] | {"do_pad": True}), "do_pad"),
        (lambda: pixel_spec(SETTINGS["CLIP"] | {"size": {"longest_edge": 5}}), "size"),
        (lambda: pixel_spec(SETTINGS["CLIP"] | {"size": {"shortest_edge": 0}}), "size"),
        (lambda: pixel_spec(SETTINGS["CLIP"] | {"image_mean": [1, 2]}), "2 channels"),
        (lambda: pixel_spec(SETTINGS["CLIP"] | {"do_center_crop": False}), "edges without a crop|no size"),
        (lambda: pixel_spec(SETTINGS["CLIP"], tiles=(1, 2)), "does not cut"),
        (lambda: pixel_spec(SETTINGS["LLaVA-NeXT"], tiles=(3, 2)), "not in the model's"),
        (lambda: pixel_spec(SETTINGS["LLaVA-NeXT"], tiles=(0, 0)), "not in the model's"),
        (lambda: pixel_spec(SETTINGS["LLaVA-NeXT"]), "give an image size or a tile"),
        (lambda: pixel_spec(SETTINGS["LLaVA-NeXT"], (60, 90), frames=2), "clip"),
        (lambda: pixel_spec({"image_processor_type": "LlavaNextImageProcessor"}, (60, 90)), "does not divide"),
        (lambda: pixel_spec(SETTINGS["LLaVA-NeXT"] | {"crop_size": 14}, (60, 90)), "square size"),
        (lambda: pixel_spec(SETTINGS["Qwen2"]), "give an image size"),
        (lambda: pixel_spec(SETTINGS["Qwen2"], (60, 90), tiles=(1, 2)), "give an image size"),
        (lambda: pixel_spec(SETTINGS["Qwen2"], (1, 900)), "200 times"),
        (lambda: pixel_spec(SETTINGS["Qwen2"] | {"do_resize": False}, (60, 90)), "do not fill"),
        (lambda: pixel_spec(SETTINGS["InternVL"], tiles=(3, 3)), "1 to 6 tiles"),
        (lambda: pixel_spec(SETTINGS["Idefics3"], tiles=(0, 3)), "size"),
        (lambda: pixel_spec(SETTINGS["Gemma 3"], tiles=(2, 2)), "one row or one column"),
    ],
)
def test_layouts_that_a_processor_does_not_make_are_refused(ask: Callable[[], Any], match: str) -> None:
    with pytest.raises(ModelError, match=match) as refused:
        ask()
    assert "\n" not in str(refused.value)


def test_layout_is_plain_data() -> None:
    spec = pixel_spec(SETTINGS["LLaVA-NeXT"], (30, 40))
    assert spec.pictures == (
        Picture(resize=((28, 28),)),
        Picture(resize=((42, 56),), canvas=(56, 56), offset=(7, 0), tiles=(2, 2)),
    )
