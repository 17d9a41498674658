"""A checkpoint's chat template, from whichever of its files transformers would take it.

Processors come first: ``processor_config.json``, then ``chat_template.json`` (as versions before 4.50 wrote it), then
``chat_template.jinja`` and the named templates beside it. A tokenizer's own template, in ``tokenizer_config.json``,
holds where the processor has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtc.errors import BundleError, ModelError, one_line
from vtc.files import read_text
from vtc.models.images.processor_files import PROCESSOR, settings_if_any

DEFAULT = "default"
"""The one that is used of templates with names."""

JINJA, LEGACY, NAMED = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
TOKENIZER = "tokenizer_config.json"


def chat_template(path: Path) -> str | None:
    """Source (Jinja) of a checkpoint's chat template; None if it ships none.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.

    Raises
    ------
    ModelError
        If a template is empty or no text, if of several with names none is the default, or if there are files that
        transformers does not take together.
    """
    located = located_template(path)
    return None if located is None else located[1]


def located_template(path: Path) -> tuple[Path, str] | None:
    """Like :func:`chat_template`, with the file (of several, their directory) that it comes from."""
    file, found = _of_processor(path)
    if found is None:
        file, found = path / TOKENIZER, (settings_if_any(path / TOKENIZER) or {}).get("chat_template")
        if isinstance(found, list):
            found = _by_name(found, file)
    return None if found is None else (file, _chosen(found, file))


def needed_template(path: Path, fixed: str | None) -> str:
    """Source (Jinja) of a checkpoint's chat template.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    fixed : str or None
        What stands in for one in families whose own processor writes the whole prompt.

    Raises
    ------
    ModelError
        If there is none, or :func:`chat_template` refuses it.
    """
    found = chat_template(path) or fixed
    if found is None:
        raise ModelError(
            f"{path}: ships no chat template, so nothing says how a question is put to the model; fetch {JINJA}, "
            f"{LEGACY} or {TOKENIZER} too, or write a {JINJA}"
        )
    return found


def check_prompt(path: Path, chat: Callable[[str], str], placeholder: str) -> None:
    """Refuse a chat template with which no question about an image can be asked.

    Parameters
    ----------
    path : Path
        The checkpoint's directory.
    chat : callable
        Puts a question about one image, or clip, into the template.
    placeholder : str
        What stands for it there.

    Raises
    ------
    ModelError
    """
    try:
        written = chat("What is this?").count(placeholder)
    except BundleError as error:
        why = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise ModelError(f"{path}: chat template cannot be rendered ({why}); write another to {JINJA}") from error
    if written != 1:
        raise ModelError(
            f"{path}: chat template writes {placeholder} {written} times for one image or clip; fetch or write a "
            f"{JINJA} that writes it once"
        )


def _of_processor(path: Path) -> tuple[Path, Any]:
    """The processor's template, or its templates by name, and their file; None if it has none."""
    named = sorted((path / NAMED).glob("*.jinja"))
    legacy = settings_if_any(path / LEGACY)
    if legacy is not None and named:
        raise ModelError(f"{path}: has both {LEGACY} and {NAMED}/, of which transformers takes neither; remove one")
    templates = {file.stem: _text(file) for file in named}  # all of which transformers reads, too
    if (path / JINJA).exists():
        templates[DEFAULT] = _text(path / JINJA)
    own = (settings_if_any(path / PROCESSOR) or {}).get("chat_template")
    if own is not None:
        return path / PROCESSOR, own
    # One that is null or empty counts as none.
    if legacy is not None and ("chat_template" not in legacy or legacy["chat_template"]):
        return path / LEGACY, legacy.get("chat_template", "")
    return path / (JINJA if DEFAULT in templates else NAMED), templates or None


def _chosen(found: Any, file: Path) -> str:
    if isinstance(found, Mapping):
        if DEFAULT not in found:
            names = ", ".join(map(ascii, found))
            raise ModelError(
                f"{file}: has chat templates named {names} and none named {DEFAULT}; name the one to use {DEFAULT}, or "
                f"write it to {JINJA}"
            )
        found = found[DEFAULT]
    if not isinstance(found, str) or not found.strip():
        raise ModelError(f"{file}: its chat template is empty or no text; fetch the file again, or write {JINJA}")
    return found


def _by_name(entries: list[Any], file: Path) -> dict[str, Any]:
    """Templates as tokenizers write several: a list of objects with a name and a template."""
    try:
        return {entry["name"]: entry["template"] for entry in entries}
    except (KeyError, TypeError):
        raise ModelError(f"{file}: its chat templates are not all a name and a template; fetch it again") from None


def _text(file: Path) -> str:
    """A file's text, with the line ends that Python has."""
    try:
        return read_text(file).replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{file}: cannot be read as text ({words}); fetch it again") from None
