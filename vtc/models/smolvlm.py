"""SmolVLM: Idefics3 with smaller parts, which takes clips as well (Marafioti et al. 2025, arXiv 2504.05299).

The frames of a clip are not cut into tiles. Each is squashed into one view and is a run of placeholders of its own,
with its minute and second before it; the text before them all says in words how many they are, and how long the
video is. Frames are taken as evenly spaced at the rate that the video processor samples at, the video as long as they
last: what the processor says of a video of whole seconds from which it samples so many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from transformers import SmolVLMForConditionalGeneration
from typing_extensions import Self

from vtc.errors import InputError
from vtc.facts.layout import Grid, ImageOptions
from vtc.inputs.pixels import PixelSpec
from vtc.models.idefics3 import AROUND, WHOLE_IMAGE, Idefics3Adapter
from vtc.models.images.pixel_specs import WHOLE, pixel_spec

# The processor's own texts cannot be imported everywhere: in the first releases their modules need torchvision.
INTRO = "You are provided the following series of {frames} frames from a {duration} [H:MM:SS] video.\n"
BEFORE_FRAME, AFTER_FRAMES = "\nFrame from {time}:", "\n\n"
"""Of each frame; of the last."""

CLIP_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{{ '' if message['content'][0]['type'] == 'image' else ' ' }}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""What the processor takes for chats with videos, whatever template the checkpoint ships."""

SAMPLED = 1.0
"""Frames a second that published checkpoints sample, where settings say nothing."""

BELOW_TWENTY = (  # noqa: SIM905 - a list would be twenty lines
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MOST_FRAMES = 999
"""Of which :func:`in_words` knows the words."""


class SmolVLMAdapter(Idefics3Adapter):
    """`SmolVLMForConditionalGeneration`, which is built as Idefics3 is."""

    family = "smolvlm"
    model_class = SmolVLMForConditionalGeneration
    image_processor = "SmolVLMImageProcessor"
    video_processor = "SmolVLMVideoProcessor"
    called = "SmolVLM"

    @classmethod
    def pixels_of(cls, settings: Mapping[str, Any], size: Grid | None, options: ImageOptions) -> PixelSpec:
        if options.frames == 1:
            return super().pixels_of(settings, size, options)
        if options.tiles not in (None, WHOLE):
            raise InputError("SmolVLM does not cut the frames of a clip into tiles; leave out --tiles or --frames")
        if options.frames > MOST_FRAMES:
            raise InputError(f"SmolVLM's prompt tells clips of up to {MOST_FRAMES} frames; give fewer --frames")
        return pixel_spec(settings, size, frames=options.frames)

    def with_image_options(self, options: ImageOptions) -> Self:
        other = super().with_image_options(options)
        # Frames may be views of another size than those of images.
        other._places = other._position_places()
        return other

    @property
    def placeholder(self) -> str:
        if self.facts.layout.frames == 1:
            return super().placeholder
        return str(getattr(self.tokenizer, "video_token", "<video>"))

    @property
    def prompt_parts(self) -> Sequence[str]:
        frames = self.facts.layout.frames
        if frames == 1:
            return super().prompt_parts
        rate = sampling_rate(self.settings(self.path, self.wanted))
        intro = INTRO.format(frames=in_words(frames), duration=timedelta(seconds=int(frames / rate)))
        seconds = [number / rate for number in range(frames)]
        times = [f"{int(second // 60):02d}:{int(second % 60):02d}" for second in seconds]
        opened = [BEFORE_FRAME.format(time=time) + AROUND + WHOLE_IMAGE for time in times]
        return [intro + opened[0], *(AROUND + text for text in opened[1:]), AROUND + AFTER_FRAMES]

    @property
    def chat_template(self) -> str:
        return CLIP_CHAT_TEMPLATE if self.facts.layout.frames > 1 else super().chat_template


def sampling_rate(settings: Mapping[str, Any]) -> float:
    """Frames a second that a video processor of these settings samples."""
    return float((settings.get("video_sampling") or settings).get("fps") or SAMPLED)


def in_words(number: int) -> str:
    """A number from 0 to `MOST_FRAMES` in English words, as ``num2words`` writes it for the processor."""
    if number < 20:
        return BELOW_TWENTY[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{BELOW_TWENTY[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{BELOW_TWENTY[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
