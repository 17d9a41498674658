"""Templates, settings and pixels of every family are those of transformers, wherever a checkpoint's files have them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

from tests.models.families import pictures
from tests.models.own import own_inputs, own_prompt
from tests.models.saved import (
    IMAGES,
    JINJA,
    LEGACY,
    NAMED,
    PLACES,
    PROCESSOR,
    SAVED_BY,
    TOKENIZER,
    VIDEOS,
    copied,
    edit,
    put_template,
    read,
    take_template,
    write,
)
from tests.tiny import image
from vtc.errors import ModelError
from vtc.facts.layout import ImageOptions
from vtc.inputs.pixels import to_pixels
from vtc.inputs.prompts import render_chat
from vtc.models import FAMILIES, adapter_class, load_adapter
from vtc.models.chat_templates import chat_template
from vtc.models.images.processor_files import image_settings, video_settings
from vtc.models.random.tiny import write_tiny_checkpoint

every_family = pytest.mark.parametrize("family", FAMILIES)
OF_VIDEOS = ("internvl", "llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm")
SIZE = (90, 120)
"""Rows and columns of images."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    paths = {
        family: write_tiny_checkpoint(family, root / family, encoder_layers=2, decoder_layers=2) for family in FAMILIES
    }
    processor = read(paths["llava"] / PROCESSOR)  # of which the reference VLM has settings in both places
    write(paths["llava"] / PROCESSOR, {name: value for name, value in processor.items() if name != "image_processor"})
    return paths


# Chat templates -------------------------------------------------------------------------------------------------------


def their_template(path: Path) -> Any:
    """The template that the processor takes, or its tokenizer where it has none."""
    settings, _ = ProcessorMixin.get_processor_dict(path, local_files_only=True)
    if settings.get("chat_template") is None:
        return AutoTokenizer.from_pretrained(path, local_files_only=True).get_chat_template()
    holder: Any = SimpleNamespace(chat_template=settings["chat_template"])
    return ProcessorMixin._resolve_chat_template(holder, None)


@every_family
@pytest.mark.parametrize("place", PLACES)
def test_a_template_is_found_wherever_transformers_finds_it(
    tiny: dict[str, Path], family: str, place: str, tmp_path: Path
) -> None:
    path = copied(tiny[family], tmp_path / "model")
    edit(path / TOKENIZER, chat_template=None)
    template = take_template(path)
    put_template(path, place, template)
    assert chat_template(path) == their_template(path) == template
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    for kind, count in (("image", 1), ("image", 2), ("video", 1)):
        content = [{"type": kind}] * count + [{"type": "text", "text": "what <is> it ?"}]
        theirs = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert render_chat(template, "what <is> it ?", count, tokenizer.special_tokens_map, kind) == theirs


@pytest.mark.parametrize("places", [pair for size in (2, 3) for pair in combinations(PLACES[:5], size)])
def test_of_several_templates_that_of_transformers_holds(
    tiny: dict[str, Path], places: tuple[str, ...], tmp_path: Path
) -> None:
    path = copied(tiny["llava"], tmp_path / "model")
    take_template(path)
    for place in places:
        put_template(path, place, f"template of {place}")
    if {"json", "named"} <= set(places):
        with pytest.raises(ValueError, match="conflicting files"):
            their_template(path)
        with pytest.raises(ModelError, match=f"has both {LEGACY} and {NAMED}/"):
            chat_template(path)
    else:
        assert chat_template(path) == their_template(path)


@pytest.mark.parametrize("nothing", [None, "", []])
@pytest.mark.parametrize("place", ["jinja", "tokenizer"])
def test_an_empty_template_counts_as_none(tiny: dict[str, Path], place: str, nothing: Any, tmp_path: Path) -> None:
    path = copied(tiny["llava"], tmp_path / "model")
    take_template(path)
    put_template(path, place, "another")
    write(path / LEGACY, {"chat_template": nothing})
    assert chat_template(path) == their_template(path) == "another"


@every_family
def test_a_checkpoint_without_a_template_is_refused_at_once(
    tiny: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(tiny[family], tmp_path / "model")
    edit(path / TOKENIZER, chat_template=None)
    take_template(path)
    assert chat_template(path) is None
    if family == "paligemma":  # whose processor writes whole prompts
        assert load_adapter(path).chat("what ?") == "<image>what ?"
        return
    monkeypatch.setattr("vtc.models.base.load_weights", None)  # is not reached
    with pytest.raises(ModelError, match=r"ships no chat template.*write a chat_template\.jinja") as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({f"{NAMED}/tool_use.jinja": "tools"}, "named 'tool_use' and none named default"),
        ({TOKENIZER: {"chat_template": [{"name": "rag", "template": "x"}]}}, "named 'rag' and none named default"),
        ({TOKENIZER: {"chat_template": [{"name": "rag"}]}}, "not all a name and a template"),
        ({TOKENIZER: {"chat_template": ["x"]}}, "not all a name and a template"),
        ({PROCESSOR: {"chat_template": 7}}, "empty or no text"),
        ({LEGACY: {"chat_template": ["x"]}}, "empty or no text"),
        ({LEGACY: {"template": "x"}}, "empty or no text"),
        ({LEGACY: "not JSON"}, "cannot be read as JSON"),
        ({LEGACY: "[" * 100_000}, "cannot be read as JSON"),
        ({LEGACY: "9" * 5000}, "cannot be read as JSON"),
        ({LEGACY: "[]"}, "is not a JSON object"),
        ({JINJA: "  \n"}, "empty or no text"),
        ({JINJA: b"\xff\xfe"}, "cannot be read as text"),
        ({JINJA: "{{ messages[0]['content'][1]['text'] }}"}, "writes <image> 0 times for one image"),
        ({JINJA: "<image><image>"}, "writes <image> 2 times for one image"),
        ({JINJA: "{% if %}"}, "cannot be rendered"),
        ({JINJA: "{{ raise_exception('no images here') }}"}, "cannot be rendered.*no images here"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(
    tiny: dict[str, Path], files: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = copied(tiny["llava"], tmp_path / "model")
    take_template(path)
    edit(path / TOKENIZER, chat_template=None)
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            edit(path / name, **content)
        else:
            (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=problem) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Settings of images and videos ----------------------------------------------------------------------------------------

LOOK = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
OTHER = {"image_mean": [0.7, 0.8, 0.9], "image_std": [0.3, 0.2, 0.1], "resample": 1}


def old(path: Path) -> None:
    edit(path / IMAGES, **LOOK)


def nested(path: Path) -> None:
    edit(path / PROCESSOR, image_processor=read(path / IMAGES) | LOOK)
    (path / IMAGES).unlink()


def both(path: Path) -> None:
    edit(path / PROCESSOR, image_processor=read(path / IMAGES) | LOOK)
    edit(path / IMAGES, **OTHER)


def nested_is_null(path: Path) -> None:
    edit(path / PROCESSOR, image_processor=None)
    edit(path / IMAGES, **LOOK)


def without_a_type(path: Path) -> None:
    write(path / IMAGES, {name: value for name, value in read(path / IMAGES).items() if name != "image_processor_type"})


def with_an_old_type(path: Path) -> None:
    kind = read(path / IMAGES)["image_processor_type"]
    without_a_type(path)
    edit(path / IMAGES, feature_extractor_type=kind.replace("ImageProcessor", "FeatureExtractor"))


def with_defaults(path: Path) -> None:
    left_out = {"image_mean", "image_std", "resample", "rescale_factor", "do_normalize", "do_rescale"}
    settings = {name: value for name, value in read(path / IMAGES).items() if name not in left_out}
    write(path / IMAGES, settings)


def with_steps_off(path: Path) -> None:
    edit(path / IMAGES, do_normalize=None, do_rescale=False)


def fast(path: Path) -> None:
    edit(path / IMAGES, image_processor_type=read(path / IMAGES)["image_processor_type"] + "Fast", **LOOK)


IMAGE_FILES = [old, nested, both, nested_is_null, without_a_type, with_an_old_type, with_defaults, with_steps_off, fast]


@every_family
@pytest.mark.parametrize("lay", IMAGE_FILES)
def test_pixels_are_those_of_transformers_wherever_settings_are(
    tiny: dict[str, Path], family: str, lay: Any, tmp_path: Path
) -> None:
    path = copied(tiny[family], tmp_path / "model")
    lay(path)
    _, pixels = adapter_class(path).read(path, ImageOptions(image_size=SIZE))
    picture = image(0, (SIZE[1], SIZE[0]))
    ours = to_pixels(pixels, [picture])[0]
    load: Any = AutoImageProcessor.from_pretrained
    # Of qwen3_vl_moe transformers does not know the class, where none is named.
    known = lay is not without_a_type or family in IMAGE_PROCESSOR_MAPPING_NAMES
    theirs = load(path if known else tiny[family], backend="pil", local_files_only=True)
    # InternVL's processor, around this one, asks for tiles at each call.
    call = {"crop_to_patches": True} if family == "internvl" else {}
    found = np.asarray(theirs(images=[picture], return_tensors="np", **call)["pixel_values"], dtype=np.float32)
    assert found.size == ours.size
    np.testing.assert_allclose(ours, found.reshape(ours.shape), atol=1e-4)


@every_family
def test_the_class_of_settings_without_one_is_the_familys(tiny: dict[str, Path], family: str) -> None:
    mapped = IMAGE_PROCESSOR_MAPPING_NAMES.get(family)
    adapter = adapter_class(tiny[family])
    assert mapped is None or mapped["torchvision"] == adapter.image_processor
    assert bool(adapter.video_processor) == (family in OF_VIDEOS)


def videos_nested(path: Path) -> None:
    edit(path / PROCESSOR, video_processor=read(path / VIDEOS) | LOOK, image_processor=read(path / IMAGES) | OTHER)
    edit(path / VIDEOS, **OTHER)


def videos_of_their_own(path: Path) -> None:
    edit(path / VIDEOS, **LOOK)
    edit(path / IMAGES, **OTHER)


def videos_beside_nested_images(path: Path) -> None:
    edit(path / PROCESSOR, image_processor=read(path / IMAGES) | OTHER)
    edit(path / VIDEOS, **LOOK)


def videos_as_images(path: Path) -> None:
    (path / VIDEOS).unlink()
    edit(path / IMAGES, **LOOK)


def videos_as_fast_images(path: Path) -> None:
    videos_as_images(path)
    fast(path)


VIDEO_FILES = [
    videos_nested,
    videos_of_their_own,
    videos_beside_nested_images,
    videos_as_images,
    videos_as_fast_images,
]


@pytest.mark.parametrize("family", OF_VIDEOS)
@pytest.mark.parametrize("lay", VIDEO_FILES)
def test_settings_of_videos_are_those_of_transformers(
    tiny: dict[str, Path], family: str, lay: Any, tmp_path: Path
) -> None:
    path = copied(tiny[family], tmp_path / "model")
    lay(path)
    adapter = adapter_class(path)
    theirs, _ = BaseVideoProcessor.get_video_processor_dict(path, local_files_only=True)
    ours = video_settings(path, adapter.video_processor)
    assert ours == theirs | {"video_processor_type": ours["video_processor_type"]}
    assert ours["image_mean"] == LOOK["image_mean"]
    # A file of images names their class, and the counterpart of Qwen2-VL's is not Qwen3-VL's.
    of_images = lay is videos_as_images and family.startswith("qwen")
    assert ours["video_processor_type"] == ("Qwen2VLVideoProcessor" if of_images else adapter.video_processor)
    _, pixels = adapter.read(path, ImageOptions(frames=4))
    assert pixels.mean == tuple(LOOK["image_mean"])


def test_nested_images_are_no_settings_of_videos(tiny: dict[str, Path], tmp_path: Path) -> None:
    path = copied(tiny["qwen2_vl"], tmp_path / "model")
    nested(path)
    (path / VIDEOS).unlink()
    with pytest.raises(OSError, match="Can't load video processor"):
        BaseVideoProcessor.get_video_processor_dict(path, local_files_only=True)
    with pytest.raises(ModelError, match="ships no video processor settings"):
        adapter_class(path).read(path, ImageOptions(frames=4))


# Checkpoints as versions of transformers save them --------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("version", SAVED_BY)
def test_checkpoints_of_all_versions_are_read_as_transformers_reads_them(
    tiny: dict[str, Path], family: str, version: str, tmp_path: Path
) -> None:
    path = SAVED_BY[version](copied(tiny[family], tmp_path / "model"))
    adapter = load_adapter(path, ImageOptions(image_size=SIZE) if family.startswith("qwen") else ImageOptions())
    assert adapter.chat("what is it ?") == own_prompt(path, "what is it ?")
    shown = [pictures(adapter, 1)]
    prompt = adapter.chat("what is it ?")
    theirs = own_inputs(path, shown, [prompt])
    ids, _ = adapter.tokenize([prompt], [1], adapter.facts.layout.tokens)
    assert ids.tolist() == theirs["input_ids"].tolist()
    ours = adapter.preprocess(shown[0])
    torch.testing.assert_close(ours, theirs["pixel_values"].reshape(ours.shape).float(), atol=1e-4, rtol=1e-4)


# Faulty settings ------------------------------------------------------------------------------------------------------

FAULTS: list[tuple[str, str, Any]] = [
    ("qwen2_vl", "merge_size", 0),
    ("qwen2_vl", "merge_size", -2),
    ("qwen2_vl", "merge_size", 2.0),
    ("qwen2_vl", "merge_size", True),
    ("qwen2_vl", "merge_size", "2"),
    ("qwen2_vl", "patch_size", 10**30),
    ("qwen2_vl", "temporal_patch_size", [2]),
    ("qwen2_vl", "size", {"shortest_edge": 0, "longest_edge": 100}),
    ("qwen2_vl", "min_pixels", -1),
    ("llava", "size", {"shortest_edge": "56"}),
    ("llava", "size", {}),
    ("llava", "size", [1, 2, 3]),
    ("llava", "crop_size", 0),
    ("llava", "image_mean", [0.5, float("nan"), 0.5]),
    ("llava", "image_mean", [0.5, 0.5]),
    ("llava", "image_std", [0.5, 0.0, 0.5]),
    ("llava", "image_std", float("inf")),
    ("llava", "rescale_factor", float("nan")),
    ("llava", "resample", 9),
    ("llava", "resample", "bicubic"),
    ("llava", "do_resize", "false"),
    ("llava", "do_normalize", 1),
    ("llava", "image_processor_type", 3),
    ("internvl", "max_patches", 10**12),
    ("internvl", "min_patches", 0),
    ("llava_next", "image_grid_pinpoints", []),
    ("llava_next", "image_grid_pinpoints", [[56]]),
    ("llava_next", "image_grid_pinpoints", [[56, -56]]),
    ("idefics3", "max_image_size", {"longest_edge": 0}),
]


@pytest.mark.parametrize(("family", "name", "value"), FAULTS)
def test_faulty_settings_are_refused_by_file_and_name(
    tiny: dict[str, Path], family: str, name: str, value: Any, tmp_path: Path
) -> None:
    path = copied(tiny[family], tmp_path / "model")
    edit(path / IMAGES, **{name: value})
    with pytest.raises(ModelError) as caught:
        adapter_class(path).read(path, ImageOptions(image_size=SIZE))
    said = str(caught.value).removeprefix(f"{path / IMAGES}: ")
    assert said.startswith((f"{name} is ", f"{name}.", "cannot be read as JSON (holds a number that is not finite"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("name", ["image_mean", "image_std", "rescale_factor", "resample", "size", "patch_size"])
@pytest.mark.parametrize("family", ["internvl", "qwen3_vl", "smolvlm"])
def test_settings_of_videos_that_are_null_are_named(
    tiny: dict[str, Path], family: str, name: str, tmp_path: Path
) -> None:
    path = copied(tiny[family], tmp_path / "model")
    edit(path / VIDEOS, **{name: None})
    if name in UNREAD.get(family, ()):
        adapter_class(path).read(path, ImageOptions(frames=4))
        return
    with pytest.raises(ModelError, match=rf"VideoProcessor: settings or layout cannot be used \({name} is null"):
        adapter_class(path).read(path, ImageOptions(frames=4))


UNREAD = {"internvl": ["patch_size"], "qwen3_vl": ["size"], "smolvlm": ["patch_size"]}
"""Settings that a family has none of, or a default for."""


@pytest.mark.parametrize("content", ["[]", "7", "null"])
@pytest.mark.parametrize("name", [IMAGES, PROCESSOR])
def test_settings_that_are_no_object_are_refused(
    tiny: dict[str, Path], name: str, content: str, tmp_path: Path
) -> None:
    path = copied(tiny["llava"], tmp_path / "model")
    (path / name).write_text(content)
    with pytest.raises(ModelError, match=f"{name}: is not a JSON object"):
        image_settings(path, "")
