"""SmolVLM's clips: the text around frames, their times and number, settings in either file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import Case, Checkpoints, compressed
from tests.models.own import number_words, own_processor, own_prompt
from vtc.errors import InputError, ModelError, RecipeError
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter, read_facts
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import write_tiny
from vtc.models.smolvlm import in_words

CLIP = Case("smolvlm", "clip", ImageOptions(frames=3))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("smolvlm"))


def with_settings(path: Path, **changes: Any) -> Path:
    """A tiny checkpoint with some settings of its video processor changed."""
    write_tiny("smolvlm", path)
    file = path / "video_preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def with_frames(adapter: VLMAdapter, frames: int) -> Any:
    """The same adapter for clips of so many frames."""
    layout = adapter.facts.layout
    return adapter.with_layout(replace(layout, frames=frames, spans=frames))


def test_text_around_frames_is_the_processors(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(CLIP)
    processor = own_processor(adapter.path)
    frames = [[[0]] * 3]
    video = {"pixel_values": torch.zeros(1, 3, 1), "video_metadata": processor.video_processor.metadata(frames)}
    with number_words():
        written = processor.replace_video_token(video, 0)
    run = adapter.image_token * processor.image_seq_len
    assert run.join(adapter.prompt_parts) == written
    assert adapter.prompt_parts == [
        "You are provided the following series of three frames from a 0:00:03 [H:MM:SS] video.\n"
        "\nFrame from 00:00:<fake_token_around_image><global-img>",
        "<fake_token_around_image>\nFrame from 00:01:<fake_token_around_image><global-img>",
        "<fake_token_around_image>\nFrame from 00:02:<fake_token_around_image><global-img>",
        "<fake_token_around_image>\n\n",
    ]


def test_chat_about_a_clip_is_the_processors(checkpoints: Checkpoints) -> None:
    """Its own template, as the checkpoint's knows no videos."""
    adapter = checkpoints.adapter(CLIP)
    written = "<|im_start|>User: <video>what is it ?<end_of_utterance>\nAssistant:"
    assert adapter.chat("what is it ?") == own_prompt(adapter.path, "what is it ?", images=0, videos=1) == written
    images = checkpoints.adapter(Case("smolvlm"))
    assert "video" not in images.chat_template


@pytest.mark.parametrize(
    ("settings", "frames", "duration", "last"),
    [
        ({"fps": 0.5}, 40, "0:01:20", "01:18"),
        ({"fps": 2}, 5, "0:00:02", "00:02"),
        ({"fps": None}, 62, "0:01:02", "01:01"),
    ],
)
def test_times_follow_the_rate_of_the_settings(
    settings: dict[str, Any], frames: int, duration: str, last: str, tmp_path: Path
) -> None:
    adapter = with_frames(load_adapter(with_settings(tmp_path / "model", **settings), CLIP.image_options), frames)
    assert f"from a {duration} [" in adapter.prompt_parts[0]
    assert f"Frame from {last}:" in adapter.prompt_parts[-2]


def test_settings_of_published_checkpoints_hold_for_clips(tmp_path: Path) -> None:
    """One file for both processors, which names that of images."""
    path = write_tiny("smolvlm", tmp_path / "model")
    (path / "video_preprocessor_config.json").unlink()
    file = path / "preprocessor_config.json"
    sampling = {"fps": 4, "max_frames": 64, "video_size": {"longest_edge": 28}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"video_sampling": sampling}))
    adapter = load_adapter(path, ImageOptions(image_size=(60, 90), frames=8))
    # The video processor lets the size of images stand before that of video_sampling.
    edge = json.loads(file.read_text())["size"]["longest_edge"]
    [frame] = adapter.pixels.pictures
    assert max(frame.resize[0]) == edge
    assert "eight frames from a 0:00:02 [" in adapter.prompt_parts[0]


def test_frames_may_be_of_another_size_than_images(tmp_path: Path) -> None:
    path = with_settings(tmp_path / "model", max_image_size={"longest_edge": 28})
    adapter = load_adapter(path, ImageOptions(frames=2))
    turned = load_adapter(path).with_image_options(ImageOptions(frames=2))
    assert turned.facts == adapter.facts
    assert adapter.facts.layout.view_grid == (1, 1)
    pixels = torch.rand(1, *adapter.pixels.shape)
    assert torch.equal(turned.embed_patches(pixels), adapter.embed_patches(pixels))


def test_frames_share_what_is_kept_equally(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(CLIP)
    stage = {"kind": "prune", "selector": "uniform"}
    assert compressed(adapter, stage | {"keep": 6}).keep_per_span == 2
    with pytest.raises(RecipeError, match="cannot be shared equally"):
        compressed(adapter, stage | {"keep": 5})


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, "two"),
        (13, "thirteen"),
        (20, "twenty"),
        (42, "forty-two"),
        (64, "sixty-four"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (342, "three hundred and forty-two"),
        (999, "nine hundred and ninety-nine"),
    ],
)
def test_numbers_in_words_are_those_of_num2words(number: int, words: str) -> None:
    """As version 0.5.14 of it writes them."""
    assert in_words(number) == words


def test_tiles_of_frames_are_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("smolvlm")
    with pytest.raises(InputError, match="leave out --tiles or --frames"):
        read_facts(path, ImageOptions(tiles=(2, 2), frames=3))
    assert read_facts(path, ImageOptions(tiles=(0, 0), frames=3)).layout.spans == 3


def test_longer_clips_than_there_are_words_for_are_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("smolvlm")
    assert read_facts(path, ImageOptions(frames=999)).layout.spans == 999
    with pytest.raises(InputError, match="up to 999 frames; give fewer --frames"):
        read_facts(path, ImageOptions(frames=1000))


@pytest.mark.parametrize("fps", [-1, "fast", [2]])
def test_rates_that_are_none_are_refused(fps: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a positive number; set it") as caught:
        read_facts(with_settings(tmp_path / "model", fps=fps), CLIP.image_options)
    assert f"video_preprocessor_config.json: fps is {fps!r}," in str(caught.value)
    assert "\n" not in str(caught.value)
