"""LLaVA-OneVision: one image in tiles, several images or frames in one view each (Li et al. 2024, arXiv 2408.03326).

An image that is alone in its prompt is seen as LLaVA-NeXT does, and its grid of tiles is shrunk bilinearly where it has
more tokens than ``anyres_max_N`` views (``vision_aspect_ratio``). Each of several images is padded to a square and seen
in one view with a newline token after it; ``--tiles 1x1`` makes a model ready for those, which are refused without it.
A bundle exported for tiles and for 1x1 answers about one image and about several as the model does. (A small image that
is alone has a tile beside its whole view all the same: name it by ``--image-size``.) With ``--frames`` each input is a
clip; its frames are shrunk to half the side, with one newline token after them all. Without any of these, images of
2 x 2 tiles are served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedModel

from vtc.errors import ModelError
from vtc.facts.layout import Block, ImageLayout, ImageOptions
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import WHOLE, pixel_spec
from vtc.models.llava_next import LlavaNextAdapter
from vtc.models.parts.any_resolution import check_views, tiled_layout, tiles_to_cut, with_pinpoints
from vtc.models.parts.checks import refuse

ONE_VIEW = (1, 1)
"""Tiles of an image that is taken whole."""


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """`LlavaOnevisionForConditionalGeneration` with the towers and decoders of LLaVA."""

    family = "llava_onevision"
    model_class: ClassVar[type[PreTrainedModel]] = LlavaOnevisionForConditionalGeneration
    image_processor = "LlavaOnevisionImageProcessor"
    video_processor = "LlavaOnevisionVideoProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        cls.check(config)
        max_tiles = _max_tiles(config)
        if options.frames > 1:
            refuse(options, "LLaVA-OneVision, of clips,", "tiles")
            pixels = pixel_spec(_of_clips(settings), frames=options.frames)
            return cls.sizes(config, _clip_layout(config, pixels)), pixels
        settings = with_pinpoints(config, settings)
        if options.tiles == ONE_VIEW:
            pixels = pixel_spec(settings, options.image_size, WHOLE)
            view = check_views(config, pixels)
            layout = ImageLayout(options.image_size or pixels.view, view, (Block(view),), ends=True, alone=False)
        else:
            pixels = pixel_spec(settings, options.image_size, tiles_to_cut(options, config))
            layout = replace(tiled_layout(config, pixels, max_tiles), several=False)
        return cls.sizes(config, layout), pixels

    @property
    def image_token_id(self) -> int:
        config = self.model.config
        return int(config.video_token_id if self.facts.layout.frames > 1 else config.image_token_id)

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        # Its processor counts one token more for the newline. Of tiles and clips it counts what no setting reaches.
        if self.pixels.views > 1 or self.pixels.frames > 1:
            return {}
        return {"num_image_tokens": keep - 1, "vision_feature_select_strategy": "full"}


def _max_tiles(config: Any) -> int:
    """N of ``anyres_max_N``."""
    found = re.fullmatch(r"anyres_max_([1-9]\d*)", str(config.vision_aspect_ratio))
    if found is None:
        raise ModelError(
            f"vision_aspect_ratio '{config.vision_aspect_ratio}' is not supported; supported: anyres_max_N"
        )
    return int(found[1])


def _of_clips(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the video processor, which may come from the image processor's file."""
    # It says how tiles are batched, of which a clip has none.
    return {name: value for name, value in settings.items() if name != "do_pad"}


def _clip_layout(config: Any, pixels: PixelSpec) -> ImageLayout:
    view = check_views(config, pixels)
    half = (-(-view[0] // 2), -(-view[1] // 2))
    frame = Block(half, extent=view)
    return ImageLayout(pixels.view, view, (frame,) * pixels.frames, ends=True, frames=pixels.frames)
