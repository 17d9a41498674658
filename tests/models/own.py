"""What a family's own model and processor say: the answer that adapters are compared with.

Everything comes from the family's own classes of ``transformers``: placeholders are expanded by its own processor, and
logits are its own forward's. Two things are stood in for, as they need packages that a test machine may not have: video
processors (torchvision), by :class:`Frames`, and ``num2words``, with which SmolVLM's processor counts a video's frames,
by the words of :data:`NUMBERS`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

FPS = 2.0
"""Of videos, in frames a second, where settings of a video processor say nothing."""

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]

SOFT_CAPPED = ("paligemma", "gemma3")
"""Their attention caps its scores in a way that the fused kernel leaves out."""


class Frames:
    """In place of a video processor: the image processor's own way with each frame, laid out as the model wants videos.

    LLaVA-OneVision takes a video as frames (videos, frames, 3, H, W), and so does SmolVLM, under the name of images.
    Qwen's families take patches of a pair of frames (videos x pairs x rows x columns, 3 x 2 x P x P), with an odd last
    frame twice, and the (pairs, rows, columns) of each video.
    """

    def __init__(self, path: Path, image_processor: Any) -> None:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(path, local_files_only=True)
        self.of_patches = "temporal_patch_size" in settings
        self.of_views = type(image_processor).__name__ == "SmolVLMImageProcessorPil"
        self.num_frames, self.fps = settings.get("num_frames"), settings.get("fps") or FPS
        self.merge_size, self.temporal_patch_size = (
            settings.get("merge_size", 1),
            settings.get("temporal_patch_size", 1),
        )
        self.image_processor = image_processor
        self.model_input_names: list[str] = []
        if self.of_views:
            look = {key: settings[key] for key in ("size", "max_image_size", "image_mean", "image_std")}
            self.image_processor = transformers.SmolVLMImageProcessorPil(**look, do_image_splitting=False)
        elif not self.of_patches:  # frames are not cut into tiles, only scaled
            scaled = {key: settings[key] for key in ("size", "image_mean", "image_std")}
            self.image_processor = transformers.SiglipImageProcessorPil(**scaled, resample=Image.Resampling.BICUBIC)

    def __call__(self, videos: Sequence[Sequence[Any]], **_: Any) -> dict[str, Any]:
        metadata = self.metadata(videos)
        if self.of_views:
            views = [self._pixels(video)["pixel_values"].squeeze(0) for video in videos]
            return {"pixel_values": torch.stack(views), "video_metadata": metadata}
        if not self.of_patches:
            frames = [self._pixels(video)["pixel_values"] for video in videos]
            return {"pixel_values_videos": torch.stack(frames)}
        patches, grids = zip(*(self._patches(video) for video in videos), strict=True)
        return {
            "pixel_values_videos": torch.cat(patches),
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": metadata,
        }

    def metadata(self, videos: Sequence[Sequence[Any]]) -> list[VideoMetadata]:
        """Of videos that have just the frames that are sampled, and last as long."""
        counts = [len(video) for video in videos]
        return [
            VideoMetadata(count, fps=self.fps, duration=count / self.fps, frames_indices=list(range(count)))
            for count in counts
        ]

    def _pixels(self, frames: Sequence[Any]) -> Any:
        return self.image_processor([Image.fromarray(np.asarray(frame)) for frame in frames], return_tensors="pt")

    def _patches(self, frames: Sequence[Any]) -> tuple[Tensor, list[int]]:
        pair = self.temporal_patch_size
        frames = [*frames, *[frames[-1]] * (-len(frames) % pair)]
        out = self._pixels(frames)
        _, rows, columns = out["image_grid_thw"][0].tolist()
        # An image is a frame that is there twice: one of the two.
        single = out["pixel_values"].view(len(frames), rows * columns, 3, pair, -1)[:, :, :, 0]
        paired = single.view(len(frames) // pair, pair, rows * columns, 3, -1).permute(0, 2, 3, 1, 4)
        return paired.reshape(-1, 3 * pair * single.shape[-1]), [len(frames) // pair, rows, columns]


@cache
def own_processor(path: Path) -> Any:
    """The family's own processor of a checkpoint, from the files that transformers takes its settings from."""
    kind = getattr(transformers, PROCESSOR_MAPPING_NAMES[json.loads((path / "config.json").read_text())["model_type"]])
    settings, _ = kind.get_processor_dict(path, local_files_only=True)
    settings = {key: value for key, value in settings.items() if key not in (*kind.get_attributes(), "processor_class")}
    tokenizer: Any = AutoTokenizer.from_pretrained
    image_processor: Any = AutoImageProcessor.from_pretrained
    parts = {
        "tokenizer": tokenizer(path, local_files_only=True),
        "image_processor": image_processor(path, backend="pil", local_files_only=True),
    }
    if "video_processor" in kind.get_attributes():
        parts["video_processor"] = Frames(path, parts["image_processor"])
    with patch.object(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None), number_words():
        return kind(**parts, **{"chat_template": parts["tokenizer"].chat_template, **settings})


def number_words() -> AbstractContextManager[object]:
    """SmolVLM's processor with number words, which it asks for when it is made and when it writes of a video."""
    return patch.object(processing_smolvlm, "num2words", NUMBERS.__getitem__)


def own_prompt(path: Path, text: str, images: int = 1, videos: int = 0) -> str:
    """A prompt as the chat template writes it, with one placeholder an image or video."""
    content: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "video"}] * videos
    content.append({"type": "text", "text": text})
    message = [{"role": "user", "content": content}]
    prompt: str = own_processor(path).apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return prompt


def own_inputs(
    path: Path, images: list[list[Image.Image]], prompts: list[str], frames: bool = False
) -> dict[str, Tensor]:
    """Everything that the model's forward wants, from its own processor, padded on the left.

    Parameters
    ----------
    path : Path
        A checkpoint.
    images : for each prompt, its images
    prompts : list of str
        With one placeholder an image, as the chat template writes it.
    frames : bool
        Whether a prompt's images are the frames of videos, all of one length, for which it has the video's placeholder.

    Returns
    -------
    dict
        Named as the arguments of the model's forward.
    """
    visuals: dict[str, Any] = {}
    if any(images):
        visuals = {"videos": _videos(path, images, prompts)} if frames else {"images": images}
    with number_words():
        out = own_processor(path)(text=list(prompts), **visuals, padding=True, padding_side="left", return_tensors="pt")
    # Labels are for training.
    return {name: value for name, value in out.items() if isinstance(value, Tensor) and name != "labels"}


def _videos(path: Path, images: list[list[Image.Image]], prompts: list[str]) -> list[list[Image.Image]]:
    """The frames of each video."""
    videos = []
    for row, prompt in zip(images, prompts, strict=True):
        count = prompt.count(own_processor(path).video_token)
        frames = len(row) // max(count, 1)
        videos += [row[number * frames : (number + 1) * frames] for number in range(count)]
    return videos


def own_model(path: Path) -> Any:
    """The model by its own class, in fp32."""
    kind = json.loads((path / "config.json").read_text())["model_type"]
    attention = {"attn_implementation": "eager"} if kind in SOFT_CAPPED else {}
    load: Any = AutoModelForImageTextToText.from_pretrained
    return load(path, local_files_only=True, dtype=torch.float32, **attention).eval()


@torch.inference_mode()
def own_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The model's own logits.

    Parameters
    ----------
    model : path of a checkpoint, or its model
    inputs : dict
        See :func:`own_inputs`.

    Returns
    -------
    Tensor
        (B, S, V); those of padding mean nothing.
    """
    model = own_model(model) if isinstance(model, Path) else model
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits.float()


@torch.inference_mode()
def own_generate(model: Any, inputs: dict[str, Tensor], max_new_tokens: int = 8) -> list[list[int]]:
    """Greedy answers, each without the token that ends it; arguments as those of :func:`own_logits`."""
    model = own_model(model) if isinstance(model, Path) else model
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    ends = torch.as_tensor(model.generation_config.eos_token_id).flatten().tolist()
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]
