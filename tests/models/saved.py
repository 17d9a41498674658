"""Checkpoints' files as several versions of transformers save them, written over those of a tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]

JINJA, LEGACY, NAMED = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
PROCESSOR, IMAGES, VIDEOS = "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"

UNSET_BY_FAST: Settings = {
    "crop_size": None,
    "data_format": "channels_first",
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "input_data_format": None,
    "return_tensors": None,
}
"""What versions 4.50 to 4.57 write of a fast image or video processor that does not have it."""


def read(file: Path) -> Settings:
    """Content of a settings file; nothing where there is none."""
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def write(file: Path, content: Settings) -> None:
    """Write a settings file."""
    file.write_text(json.dumps(content))


def edit(file: Path, **fields: Any) -> None:
    """Set fields of a settings file."""
    write(file, read(file) | fields)


def take_template(path: Path) -> str:
    """The chat template of a tiny checkpoint, taken out of it."""
    template = (path / JINJA).read_text()
    (path / JINJA).unlink()
    return template


def put_template(path: Path, place: str, template: str) -> None:
    """Put a chat template into one of the places where transformers finds one."""
    if place == "jinja":
        (path / JINJA).write_text(template)
    elif place == "json":
        write(path / LEGACY, {"chat_template": template})
    elif place == "processor":
        edit(path / PROCESSOR, chat_template=template)
    elif place == "named":
        (path / NAMED).mkdir()
        (path / NAMED / "default.jinja").write_text(template)
        (path / NAMED / "tool_use.jinja").write_text("tools")
    elif place == "tokenizer":
        edit(path / TOKENIZER, chat_template=template)
    else:
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        edit(path / TOKENIZER, chat_template=named)


PLACES = ("processor", "json", "named", "jinja", "tokenizer", "tokenizer list")


def by_4_4x(path: Path) -> Path:
    """Slow processors, one file for images and videos, the template in a file of JSON, special tokens in their map."""
    put_template(path, "json", take_template(path))
    (path / VIDEOS).unlink(missing_ok=True)
    images = read(path / IMAGES)
    if images["image_processor_type"] == "Qwen2VLImageProcessor":
        size = images.pop("size")
        images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    write(path / IMAGES, images)
    if set(read(path / PROCESSOR)) == {"processor_class"}:
        (path / PROCESSOR).unlink()
    tokenizer = read(path / TOKENIZER)
    names = [name for name in ("bos_token", "eos_token", "pad_token") if name in tokenizer]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write(path / "special_tokens_map.json", {name: {"content": tokenizer[name], **flags} for name in names})
    return path


def by_4_5x(path: Path) -> Path:
    """Fast processors, each with a file of its own, in which every setting stands, most of them null."""
    for file in (path / IMAGES, path / VIDEOS):
        settings = read(file)
        if settings:
            kind = "image_processor_type" if file.name == IMAGES else "video_processor_type"
            fast = "Fast" if file.name == IMAGES else ""
            write(file, UNSET_BY_FAST | settings | {kind: settings[kind] + fast})
    return path


def by_5(path: Path) -> Path:
    """All settings of all processors nested in one file."""
    nested: Settings = {"image_processor": read(path / IMAGES)}
    if (path / VIDEOS).exists():
        nested["video_processor"] = read(path / VIDEOS)
    edit(path / PROCESSOR, **nested)
    (path / IMAGES).unlink()
    (path / VIDEOS).unlink(missing_ok=True)
    return path


def by_5_over_4(path: Path) -> Path:
    """Saved again by version 5 into the directory of an older one, whose files stay and say something else."""
    old = {file.name: file.read_text() for file in (path / IMAGES, path / VIDEOS) if file.exists()}
    by_5(path)
    for name, content in old.items():
        write(path / name, json.loads(content) | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]})
    put_template(path, "tokenizer", "an older template")
    return path


SAVED_BY: dict[str, Callable[[Path], Path]] = {
    "4.4x": by_4_4x,
    "4.5x": by_4_5x,
    "5.x": by_5,
    "5.x over 4.x": by_5_over_4,
}


def copied(source: Path, target: Path) -> Path:
    """A copy of a checkpoint whose weights are links, to be changed in all other files."""
    return Path(shutil.copytree(source, target, copy_function=_link_weights))


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)
