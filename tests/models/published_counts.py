"""How many image placeholders a model's own processor writes for one image, from its configuration files alone.

The real image processor runs on a blank image of the size, and the real processor class expands one placeholder. Only
the tokenizer is made up: it knows the family's special tokens and no words, which is all that counting needs.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedTokenizerFast
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin

PUBLISHED = Path(__file__).parent / "published"

NAMES: tuple[str, ...] = tuple(sorted(path.parent.name for path in PUBLISHED.glob("*/config.json")))

EXPECTED: dict[str, int] = {
    "gemma-3-4b-it": 256,
    "idefics3-8b": 2197,
    "internvl3-2b": 2304,
    "llava-1.5-7b": 576,
    "llava-onevision-qwen2-0.5b-ov": 5967,
    "llava-onevision-qwen2-7b-ov": 5967,
    "llava-v1.6-mistral-7b": 1948,
    "llava-v1.6-vicuna-7b": 1948,
    "paligemma2-3b-pt-224": 256,
    "qwen2-vl-2b": 1196,
    "qwen2.5-vl-3b": 1196,
    "qwen2.5-vl-7b": 1196,
    "qwen3-vl-2b": 880,
    "qwen3-vl-30b-a3b": 880,
    "smolvlm-2.2b": 1053,
    "smolvlm-256m": 832,
    "smolvlm2-500m": 832,
}
"""Image placeholders of one 1280 x 720 image (width x height), by fixture."""

SIZES: tuple[tuple[int, int], ...] = ((720, 1280), (336, 336), (2304, 1728), (100, 900), (640, 480))
"""Other sizes, (width, height): portrait, square, larger than any budget, extreme, 4:3."""

EXPECTED_AT: dict[str, tuple[int, ...]] = {
    "gemma-3-4b-it": (256, 256, 256, 256, 256),
    "idefics3-8b": (2197, 2873, 2197, 845, 2197),
    "internvl3-2b": (2304, 256, 3328, 2560, 3328),
    "llava-1.5-7b": (576, 576, 576, 576, 576),
    # 2304 x 1728 is more than 9 views: its grid is interpolated down.
    "llava-onevision-qwen2-0.5b-ov": (6009, 1485, 7309, 1539, 2929),
    "llava-v1.6-mistral-7b": (1968, 1176, 2340, 1224, 2340),
    "qwen2.5-vl-3b": (1196, 144, 5084, 128, 391),
    "qwen3-vl-2b": (880, 100, 3888, 84, 300),
    "smolvlm-2.2b": (1053, 1377, 1053, 405, 1053),
    "smolvlm-256m": (832, 1088, 832, 320, 832),
}
"""Image placeholders at :data:`SIZES`, for one fixture of each rule."""

_IMAGE_TOKENS = {"gemma3": "<image_soft_token>", "internvl": "<IMG_CONTEXT>"}
_QWEN_IMAGE = "<|image_pad|>"

_NAMED_TOKENS = {
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
}
# Tokens that a processor asks its tokenizer for by name.


def image_token(model_type: str) -> str:
    """The placeholder that is repeated once for each visual token."""
    return _QWEN_IMAGE if model_type.startswith("qwen") else _IMAGE_TOKENS.get(model_type, "<image>")


def load_config(name: str) -> Any:
    """The fixture's configuration, as the class of `transformers` for its ``model_type``."""
    return AutoConfig.from_pretrained(PUBLISHED / name)


def load_processor(name: str) -> ProcessorMixin:
    """The fixture's own processor with its own image processor and settings, and a made-up tokenizer."""
    path = PUBLISHED / name
    processor_class: str = json.loads((path / "preprocessor_config.json").read_text())["processor_class"]
    own = path / "processor_config.json"
    settings = json.loads(own.read_text()) if own.is_file() else {}
    settings.pop("processor_class", None)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(path),
        "tokenizer": _tokenizer(load_config(name).model_type),
    }
    cls: type[ProcessorMixin] = getattr(transformers, processor_class)
    if "video_processor" in cls.get_attributes():
        # It needs torchvision, and no image passes through it.
        parts["video_processor"] = None
        cls = type(cls.__name__, (_WithoutVideo, cls), {})
    with _number_words():
        return cls(**parts, **settings)


class _WithoutVideo(ProcessorMixin):
    """Lets a processor be built with no video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


def _number_words() -> AbstractContextManager[object]:
    """SmolVLM's processor wants num2words, to describe a video; its place is taken where it is not installed."""
    return nullcontext() if processing_smolvlm.num2words else mock.patch.object(processing_smolvlm, "num2words", str)


def placeholders(name: str, width: int, height: int) -> int:
    """Image placeholders that the fixture's processor writes for one image.

    Parameters
    ----------
    name : str
        Directory under ``published``.
    width, height : int
        Size of the image in pixels.
    """
    processor = load_processor(name)
    token = image_token(load_config(name).model_type)
    prompt = processor.image_token if hasattr(processor, "image_token") else token
    inputs = processor(images=[Image.new("RGB", (width, height))], text=[prompt])
    [ids] = inputs["input_ids"]
    return list(ids).count(processor.tokenizer.convert_tokens_to_ids(token))


def _tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    token = image_token(model_type)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"image_token": token, **_NAMED_TOKENS.get(model_type, {})}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", extra_special_tokens=named
    )
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    fast.add_tokens(["<global-img>", "<fake_token_around_image>", *tiles], special_tokens=True)
    return fast
