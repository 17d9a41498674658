"""Which of a checkpoint's files holds the settings of its image or video processor: the one that transformers takes.

Three generations lie side by side in checkpoints. The first releases wrote ``preprocessor_config.json`` for both
processors, later ones ``video_preprocessor_config.json`` beside it, and version 5 nests both in
``processor_config.json``. The nested settings hold where there are some, whatever the older files say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.errors import ModelError
from vtc.models.configuration import read_configuration
from vtc.models.images.pixel_specs import CLIPS
from vtc.models.images.setting_checks import check_settings

PROCESSOR = "processor_config.json"
IMAGES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"


def settings_if_any(file: Path) -> dict[str, Any] | None:
    """Content of a settings file; None if there is none.

    Raises
    ------
    ModelError
        As :func:`vtc.models.configuration.read_configuration`.
    """
    return read_configuration(file) if file.exists() else None


def image_settings(path: Path, kind: str) -> dict[str, Any]:
    """Settings of a checkpoint's image processor, checked, with its class as ``image_processor_type``.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    kind : str
        The family's class, for settings that name none.

    Raises
    ------
    ModelError
        If it ships none, or a setting is not what it must be.
    """
    settings, file = _found(path, "image_processor", IMAGES)
    # Before image processors had their name they were feature extractors.
    old = settings.get("feature_extractor_type")
    old = old.replace("FeatureExtractor", "ImageProcessor") if isinstance(old, str) else None
    named = settings.get("image_processor_type") or old or kind
    check_settings(settings, file)
    settings = {name: value for name, value in settings.items() if name != "video_processor_type"}
    return settings | {"image_processor_type": named}


def video_settings(path: Path, kind: str) -> dict[str, Any]:
    """Settings of a checkpoint's video processor, checked, with its class as ``video_processor_type``.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    kind : str
        The family's class, for settings that name none.

    Raises
    ------
    ModelError
        If it ships none, or a setting is not what it must be.
    """
    settings, file = _found(path, "video_processor", VIDEOS, IMAGES)
    # A file that is the image processor's names that one's class, whose counterpart holds if there is such a class.
    image = settings.get("image_processor_type")
    counterpart = image.replace("ImageProcessor", "VideoProcessor") if isinstance(image, str) else ""
    named = settings.get("video_processor_type") or (counterpart if counterpart in CLIPS else kind)
    check_settings(settings, file)
    return settings | {"video_processor_type": named}


def _found(path: Path, nested: str, *names: str) -> tuple[dict[str, Any], Path]:
    """The settings and their file: nested ones, or the first file of these names."""
    processor = settings_if_any(path / PROCESSOR) or {}
    if processor.get(nested) is not None:
        if not isinstance(processor[nested], dict):
            raise ModelError(f"{path / PROCESSOR}: {nested} is not a JSON object; fetch the checkpoint again")
        return dict(processor[nested]), path / PROCESSOR
    for name in names:
        settings = settings_if_any(path / name)
        if settings is not None:
            return settings, path / name
    what = nested.replace("_", " ")
    raise ModelError(f"{path}: ships no {what} settings ({names[0]}); fetch them too")
