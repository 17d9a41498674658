"""Prompts: from a question to what the checkpoint was trained on, and from placeholders to runs of visual tokens.

Chat templates are rendered as `transformers` renders them (:mod:`vtc.inputs.templates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError

from vtc.errors import BundleError, InputError
from vtc.inputs.templates import render


def render_chat(
    template: str, question: str, images: int, special_tokens: Mapping[str, str], kind: str = "image"
) -> str:
    """A question about images (or clips), put into a chat template.

    Parameters
    ----------
    template : str
        Jinja source, as in ``chat_template.jinja``.
    question : str
    images : int
        Placed before the question.
    special_tokens : mapping
        ``bos_token`` and its like.
    kind : {"image", "video"}

    Returns
    -------
    str
        The prompt, ready for the model's answer.

    Raises
    ------
    BundleError
        If the template cannot be rendered.
    """
    content = [{"type": kind}] * images + [{"type": "text", "text": question}]
    variables = {
        **special_tokens,
        "messages": [{"role": "user", "content": content}],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    try:
        return render(template, variables)
    except TemplateError as error:
        raise BundleError(
            f"bundle's chat template cannot be rendered ({error}); --raw-prompt goes without it"
        ) from error


def without_marks(question: str, marks: Sequence[str]) -> str:
    """A question in which nothing stands for an image: a blank breaks what would be read as a mark of one.

    Parameters
    ----------
    question : str
    marks : sequence of str
        What stands for an image or a visual token in a prompt.

    Raises
    ------
    InputError
        If it is no text.
    """
    if not isinstance(question, str):
        raise InputError(f"a question is text, not {type(question).__name__}")
    for mark in sorted({mark for mark in marks if mark}, key=len, reverse=True):
        question = question.replace(mark, f"{mark[0]} {mark[1:]}")
    return question


def expand(
    prompt: str,
    placeholder: str,
    images: int,
    parts: Sequence[str],
    run: str,
    frame: tuple[str, str] = ("", ""),
) -> str:
    """A prompt whose placeholders are replaced by what the model sees of an image.

    Parameters
    ----------
    prompt, placeholder : str
    images : int
        How many placeholders there must be.
    parts : sequence of str
        Text before, between and after an image's runs of visual tokens.
    run : str
        One of those runs.
    frame : (str, str)
        What goes after the last placeholder (at the start of the prompt where it has none), and what ends the prompt.

    Raises
    ------
    InputError
        If the prompt's placeholders do not match its images, or it holds half a character.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("prompt holds half a character, or bytes that are not UTF-8; write it as UTF-8") from None
    found = prompt.count(placeholder)
    if found != images:
        raise InputError(f"prompt has {found} {placeholder} placeholder(s) for {images} image(s); give one for each")
    before, last, after = prompt.rpartition(placeholder)
    return f"{before}{last}{frame[0]}{after}{frame[1]}".replace(placeholder, run.join(parts))


def clips(images: Sequence[int], frames: int) -> list[int]:
    """Inputs that so many images of each prompt make up: one each, or one for every clip of `frames`.

    Raises
    ------
    InputError
        If a prompt's images do not make up whole clips.
    """
    for count in images:
        if count % frames:
            raise InputError(
                f"{count} image(s) do not make up clips of {frames} frames; give every frame of a clip, in order"
            )
    return [count // frames for count in images]


def check_several(inputs: int, *, several: bool) -> None:
    """Refuse several images in a prompt where a model is made ready for one alone.

    Parameters
    ----------
    inputs : int
        Images of the prompt.
    several : bool
        Whether the layout is that of several.

    Raises
    ------
    InputError
    """
    if inputs > 1 and not several:
        raise InputError(
            f"prompt has {inputs} images, which this model sees whole, and it is made ready for one in tiles; ask "
            "about one, or make it ready with --tiles 1x1 (vtc export takes --tiles again for a second layout)"
        )


def writes_start(prompt: str, frame: tuple[str, str], start: str | None) -> bool:
    """Whether a prompt, or what is put into it, holds the start token, so that a tokenizer must not add a second one.

    Parameters
    ----------
    prompt : str
        Chat templates often write it themselves.
    frame : (str, str)
        As for :func:`expand`.
    start : str or None
        The tokenizer's start token.
    """
    return bool(start) and (prompt.startswith(str(start)) or frame[0].startswith(str(start)))
