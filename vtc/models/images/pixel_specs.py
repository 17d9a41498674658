"""From a checkpoint's image processor settings and one image size or tile layout to a :class:`PixelSpec`.

One small function for each kind of processor, and one line in :data:`KINDS`. What settings leave out is what the
processor's class in `transformers` has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers

from vtc.errors import ModelError
from vtc.inputs.pixels import Picture, PixelSpec
from vtc.models.images import resolution
from vtc.models.images.pixel_settings import Needed, edges, plain_spec, tones

Size = tuple[int, int]

USUAL_IMAGE: Size = (720, 1280)
"""Of images, or frames, that are served where nobody says, in families that take any size."""

WHOLE: Size = (0, 0)
"""Tiles of an image that is taken as one view."""


@dataclass(frozen=True)
class Layout:
    """What is asked for: a nominal image size, tiles, or both.

    Attributes
    ----------
    size : (rows, columns) of pixels, or None
    tiles : (rows, columns), or None
        None: those that the processor chooses for an image of that size. ``(0, 0)``: the whole image as one view.
    frames : int
    """

    size: Size | None
    tiles: Size | None
    frames: int

    def nominal(self, tile: Size) -> Size:
        """The size; without one, that of tiles of this many pixels laid side by side."""
        if self.size is not None:
            return self.size
        rows, columns = self.tiles or WHOLE
        return max(rows, 1) * tile[0], max(columns, 1) * tile[1]


def pixel_spec(
    settings: Mapping[str, Any], size: Size | None = None, tiles: Size | None = None, frames: int = 1
) -> PixelSpec:
    """The pixels of one fixed layout.

    Parameters
    ----------
    settings : mapping
        Of the image processor, or of the video processor for a clip, and the name of its class. What the processor
        around it passes at every call (``crop_to_patches`` of InternVL) is to be laid over them.
    size : (rows, columns) or None
        Image size; pixels of an image of this size are those of the processor.
    tiles : (rows, columns) or None
        Tiles to cut instead of those that the processor would choose for `size`. ``(0, 0)`` takes the image as one
        view, as LLaVA-OneVision does with several images, InternVL without ``crop_to_patches`` and Idefics3 without
        ``do_image_splitting``.
    frames : int
        More than 1: a clip of so many frames, each in one view.

    Raises
    ------
    ModelError
        If the processor is of a kind that vtc does not know, or does not make such a layout.
    """
    named = settings.get("video_processor_type") or settings["image_processor_type"]
    kind = str(named).removesuffix("Pil").removesuffix("Fast")
    if kind not in KINDS:
        raise ModelError(f"image processor '{named}' is not known; vtc knows {', '.join(KINDS)}")
    like, changes = CLIPS.get(kind, (kind, {}))
    try:
        whole = Needed(getattr(transformers, f"{like}Pil").from_dict({**changes, **settings}).to_dict())
        return replace(KINDS[kind](whole, Layout(size, tiles, frames)), frames=frames)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{kind}: settings or layout cannot be used ({error})") from None


def _plain(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """CLIP, SigLIP (and PaliGemma), and the frames of LLaVA-OneVision: any image becomes one view of one size."""
    if layout.tiles not in (None, WHOLE):
        raise ModelError(f"tiles {layout.tiles}: this model's image processor does not cut images into tiles")
    return plain_spec(settings)


def _llava_next(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """LlavaNextImageProcessor: the whole image squashed, then tiles of it laid on a canvas in its aspect ratio."""
    tile = _square(settings)
    pinpoints = settings["image_grid_pinpoints"]
    if layout.tiles is not None:
        canvas = layout.tiles[0] * tile, layout.tiles[1] * tile
        if list(canvas) not in [list(pinpoint) for pinpoint in pinpoints]:
            raise ModelError(f"tiles {layout.tiles}: the canvas {canvas} is not in the model's image_grid_pinpoints")
        pinpoints = [canvas]
    size = _nominal(layout, (tile, tile))
    lie = resolution.any_resolution(size, pinpoints, tile)
    pictures = (
        Picture(resize=((tile, tile),)),
        Picture(resize=(lie.content,), canvas=lie.canvas, offset=lie.offset, tiles=lie.tiles),
    )
    return PixelSpec(pictures=pictures, aspect=size, **tones(settings))


def _llava_onevision(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """LlavaOnevisionImageProcessor: one image as in LLaVA-NeXT; one of several is padded to a square and squashed."""
    if layout.tiles != WHOLE:
        return _llava_next(settings, layout)
    tile = _square(settings)
    background = _background(settings)
    return PixelSpec((Picture(resize=((tile, tile),)),), aspect=(1, 1), background=background, **tones(settings))


def _llava(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """LlavaImageProcessor: as CLIP's, padded to a square first where `do_pad` says so."""
    spec = _plain(Needed({**settings, "do_pad": False}), layout)
    return replace(spec, aspect=(1, 1), background=_background(settings)) if settings.get("do_pad") else spec


def _background(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """The mean that a processor holds, normalised or not, as the colour that it pads with."""
    red, green, blue = (int(level * 255) for level in settings["image_mean"])
    return red, green, blue


def _square(settings: Mapping[str, Any]) -> int:
    """Edge of a tile, where base view, tiles and crop all have it."""
    size = edges(settings["size"])
    crop = edges(settings["crop_size"], square=True) if settings.get("crop_size") else None
    edge = size.get("height", size.get("shortest_edge", 0))
    if set(size.values()) != {edge} or (crop and set(crop.values()) != {edge}):
        raise ValueError(f"tiles of {crop} pixels and views of {size} pixels; one square size is wanted")
    return edge


def _qwen(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """Qwen2VLImageProcessor and Qwen2VLVideoProcessor: whole blocks of patches, about as many as the image fills."""

    def resized(size: Size, factor: int, least: int, most: int) -> Size:
        return resolution.smart_resize(size, factor, least, most)

    return _patches(settings, layout, resized)


def _qwen3_clip(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """Qwen3VLVideoProcessor: bounds hold for all frames of a clip together."""

    def resized(size: Size, factor: int, least: int, most: int) -> Size:
        return resolution.smart_resize_clip(size, layout.frames, factor, settings["temporal_patch_size"], least, most)

    return _patches(settings, layout, resized)


def _patches(settings: Mapping[str, Any], layout: Layout, resized: Callable[[Size, int, int, int], Size]) -> PixelSpec:
    if layout.tiles not in (None, WHOLE):
        raise ModelError(f"tiles {layout.tiles}: this model takes images of any size whole; give an image size")
    if settings.get("cap_pixels_per_frame"):
        raise ModelError("video setting cap_pixels_per_frame is on, which vtc does not follow; set size instead")
    patch, merge = settings["patch_size"], settings["merge_size"]
    block = patch * merge
    size = _nominal(layout, (block, block))
    if settings.get("do_resize", True):
        bounds = _bounds(settings["size"])
        target = resized(size, block, *bounds)
    else:
        target = size
    patches = (patch, settings["temporal_patch_size"], merge)
    return PixelSpec((Picture(resize=(target,)),), aspect=size, patches=patches, **tones(settings))


def _bounds(size: Any) -> tuple[int, int]:
    """The least and the most pixels of an image."""
    if not isinstance(size, Mapping) or not size.get("shortest_edge") or not size.get("longest_edge"):
        raise ValueError(f"size {size} does not say shortest_edge and longest_edge, the least and the most pixels")
    return size["shortest_edge"], size["longest_edge"]


def _internvl(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """GotOcr2ImageProcessor: tiles of the squashed image, then, where there are several, a thumbnail of it."""
    tile = edges(settings["size"])
    view = tile["height"], tile["width"]
    least, most = settings["min_patches"], settings["max_patches"]
    if layout.tiles == WHOLE or (layout.tiles is None and (most < 2 or not settings["crop_to_patches"])):
        return plain_spec(settings)
    size = _nominal(layout, view)
    rows, columns = layout.tiles or resolution.tile_grid(size, view, least, most)
    if not least <= rows * columns <= most:
        raise ModelError(f"tiles {(rows, columns)}: the model takes {least} to {most} tiles")
    tiled = Picture(resize=((rows * view[0], columns * view[1]),), tiles=(rows, columns))
    thumbnail = (Picture(resize=(view,)),) if rows * columns > 1 else ()
    return PixelSpec(pictures=(tiled, *thumbnail), aspect=size, **tones(settings))


def _idefics3(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """Idefics3ImageProcessor, SmolVLMImageProcessor: tiles of the enlarged image, then that squashed into one view."""
    tile = settings["max_image_size"]["longest_edge"]
    view = (tile, tile)
    splits = settings["do_image_splitting"] if layout.tiles is None else layout.tiles != WHOLE
    size = _nominal(layout, view) if splits else layout.nominal(view)
    longest = settings["size"].get("longest_edge")
    if layout.tiles and splits:
        # The processor reaches other tiles than those of its own longest edge where a call gives another edge.
        longest = max(layout.tiles) * tile
    first = size
    if settings.get("do_resize", True):
        first = resolution.longest_edge(size, longest) if longest else _fixed(settings["size"])
    steps = (first,) if first != size else ()
    if not splits:
        # Any image is squashed into the view, so none needs padding; its shape only decides the step in between.
        return PixelSpec((Picture(resize=(*steps, view)),), **tones(settings))
    canvas = (layout.tiles[0] * tile, layout.tiles[1] * tile) if layout.tiles else resolution.whole_tiles(first, tile)
    rows, columns = canvas[0] // tile, canvas[1] // tile
    tiled = Picture(resize=(*steps, canvas), tiles=(rows, columns))
    whole = (Picture(resize=(*steps, canvas, view)),) if rows * columns > 1 else ()
    return PixelSpec(pictures=(tiled, *whole), aspect=size, **tones(settings))


def _smolvlm_clip(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """SmolVLMVideoProcessor: frames as its image processor has an image that it does not cut."""
    if layout.tiles not in (None, WHOLE):
        raise ModelError(f"tiles {layout.tiles}: this model does not cut the frames of a clip into tiles")
    if not settings.get("do_resize", True):
        raise ModelError("video setting do_resize is off, so that frames have no fixed size; set it to true")
    return _idefics3(settings, replace(layout, tiles=WHOLE))


def _fixed(size: Mapping[str, int]) -> Size:
    if not {"height", "width"} <= set(size):
        raise ValueError(f"size {dict(size)} says neither longest_edge nor height and width")
    return size["height"], size["width"]


def _gemma3(settings: Mapping[str, Any], layout: Layout) -> PixelSpec:
    """Gemma3ImageProcessor: the squashed image, then, with pan and scan, crops along its longer edge, squashed too."""
    whole = plain_spec(settings)
    size, crops = layout.size, layout.tiles
    if crops is None and settings.get("do_pan_and_scan"):
        size = _nominal(layout, whole.view)
        crops = resolution.pan_and_scan(
            size,
            # What the processor says where the checkpoint does not.
            settings.get("pan_and_scan_min_crop_size") or 256,
            settings.get("pan_and_scan_max_num_crops") or 4,
            settings.get("pan_and_scan_min_ratio_to_activate") or 1.2,
        )
    if crops in (None, WHOLE):
        return whole
    size = size or _nominal(layout, whole.view)
    if min(crops) != 1 or max(crops) < 2:
        raise ModelError(f"tiles {crops}: pan and scan makes one row or one column of crops, two or more")
    boxes = resolution.crop_boxes(size, crops)
    pictures = tuple(replace(whole.pictures[0], box=box) for box in boxes)
    return replace(whole, pictures=(*whole.pictures, *pictures), aspect=size)


def _nominal(layout: Layout, tile: Size) -> Size:
    if layout.size is None and layout.tiles is None:
        raise ModelError("this model's layout depends on the image; give an image size or a tile layout")
    return layout.nominal(tile)


KINDS: dict[str, Callable[[Mapping[str, Any], Layout], PixelSpec]] = {
    "CLIPImageProcessor": _plain,
    "SiglipImageProcessor": _plain,
    "LlavaImageProcessor": _llava,
    "LlavaNextImageProcessor": _llava_next,
    "LlavaOnevisionImageProcessor": _llava_onevision,
    "LlavaOnevisionVideoProcessor": _plain,
    "Qwen2VLImageProcessor": _qwen,
    "Qwen2VLVideoProcessor": _qwen,
    "Qwen3VLVideoProcessor": _qwen3_clip,
    "GotOcr2ImageProcessor": _internvl,
    "InternVLVideoProcessor": _plain,
    "Idefics3ImageProcessor": _idefics3,
    "SmolVLMImageProcessor": _idefics3,
    "SmolVLMVideoProcessor": _smolvlm_clip,
    "Gemma3ImageProcessor": _gemma3,
}
"""Kind of processor, as settings name it, to how its pixels are described."""

CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "InternVLVideoProcessor": ("GotOcr2ImageProcessor", {}),
    "LlavaOnevisionVideoProcessor": ("LlavaOnevisionImageProcessor", {"do_pad": False}),
    "Qwen2VLVideoProcessor": (
        "Qwen2VLImageProcessor",
        {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}},
    ),
    "Qwen3VLVideoProcessor": (
        "Qwen2VLImageProcessor",
        {
            "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
            "patch_size": 16,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    ),
    "SmolVLMVideoProcessor": ("SmolVLMImageProcessor", {}),
}
"""Video processors, whose classes need torchvision: the image processor that each is like, and where it differs."""
