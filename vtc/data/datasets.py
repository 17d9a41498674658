"""Questions about images with accepted answers: a directory with ``data.jsonl``, or the reference scenes.

Each line of ``data.jsonl`` is an object with ``id`` (its own), ``image`` (path relative to the file, of an image in the
file's directory), ``question``, ``answers`` (list), ``category``, and optionally ``evidence`` (pixel boxes
[x0, y0, x1, y1]) and ``chance`` (accuracy of a guess).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from vtc.data.lines import read_lines
from vtc.data.records import parse_record
from vtc.errors import InputError
from vtc.reference import is_shipped

if TYPE_CHECKING:
    from vtc.reference.questions import Question

Split = Literal["train", "validation", "test"]

FILE_NAME = "data.jsonl"
REFERENCE = "reference"
REFERENCE_LIMIT = 600
"""Reference questions asked by default, each about an image of its own: a minute or two on two cores."""


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes
    ----------
    id : str
    image : Path or PIL image
        Files are opened when needed, drawn scenes are kept.
    image_id : str
        Items with the same one share an image and are not independent.
    question : str
    answers : tuple of str
    category : str
    evidence : tuple of boxes
        Pixel boxes (x0, y0, x1, y1) that hold what the answer follows from; empty where unknown.
    chance : float or None
        Accuracy of the best guess without the image, where known.
    where : str
        File and line that it stands on, where it does.
    """

    id: str
    image: Path | Image.Image
    image_id: str
    question: str
    answers: tuple[str, ...]
    category: str
    evidence: tuple[tuple[float, float, float, float], ...] = ()
    chance: float | None = None
    where: str = ""

    def load(self) -> Image.Image:
        """The image, RGB."""
        from vtc.runtime.image import open_image

        return open_image(self.image)


@dataclass(frozen=True)
class Dataset:
    """Items, and where they come from.

    Attributes
    ----------
    name : str
        A directory or ``reference``.
    items : tuple of Item
    sha256 : str
        Digest of all questions and answers asked, so that two reports can be told to be about the same data.
    """

    name: str
    items: tuple[Item, ...]

    @property
    def images(self) -> int:
        """Number of different images."""
        return len({item.image_id for item in self.items})

    @property
    def categories(self) -> list[str]:
        """Capabilities, in order of first appearance."""
        return list(dict.fromkeys(item.category for item in self.items))

    @property
    def sha256(self) -> str:
        """Digest of the questions, their answers and images' names."""
        rows = [[item.id, item.image_id, item.question, list(item.answers), item.category] for item in self.items]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def data_for(model: str, data: str | Path | None = None) -> str | None:
    """Choose the data for a model: what the user gave, or the reference scenes for the reference model alone.

    Parameters
    ----------
    model : str
        Its name: ``reference`` or a directory.
    data : str, Path or None
        What the user gave.

    Returns
    -------
    str or None
        None where a user has to say, as other models know nothing of drawn digits.
    """
    if data is not None:
        return str(data)
    return REFERENCE if is_shipped(model) else None


def needed_data(model: str, data: str | Path | None = None) -> str:
    """Choose the data for a model as :func:`data_for` does.

    Raises
    ------
    InputError
        Where a user has to say.
    """
    found = data_for(model, data)
    if found is None:
        raise InputError(f"say what to ask {model}: --data DIR with data.jsonl; drawn digits are for 'reference' alone")
    return found


def load_dataset(name: str | Path, limit: int | None, seed: int, split: Split = "test") -> Dataset:
    """Load what ``--data`` names.

    Parameters
    ----------
    name : str or Path
        ``reference``, a directory with ``data.jsonl``, or such a file.
    limit : int or None
        Number of items. None: all of a directory, :data:`REFERENCE_LIMIT` of the endless reference scenes.
    seed : int
        Draws the reference scenes, or the subset of a directory.
    split : {"test", "train", "validation"}
        Whose handwriting the reference scenes show; ``train`` is for calibration. A directory has no splits.

    Raises
    ------
    InputError
        If there is no such data, or a line lacks something; the message names file and line.
    """
    if (limit is not None and limit < 1) or seed < 0:
        raise InputError(f"{limit} samples drawn with seed {seed}: give 1 or more, and a seed of 0 or more")
    if str(name) == REFERENCE:
        count = REFERENCE_LIMIT if limit is None else limit
        return Dataset(REFERENCE, tuple(itertools.islice(reference_items(seed, split), count)))
    items = read_jsonl(_data_file(Path(name)))
    return Dataset(str(name), tuple(subset(items, limit, seed)))


def count_items(name: str | Path) -> int | None:
    """How many questions there are in what ``--data`` names, which are not looked at; None of the endless reference.

    Raises
    ------
    InputError
        If there is no such data.
    """
    return None if str(name) == REFERENCE else sum(1 for _ in read_lines(_data_file(Path(name))))


def subset(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """`limit` items drawn at random, in file order: files are often sorted, and the first ones mislead."""
    if limit is None or limit >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), size=limit, replace=False)
    return [items[index] for index in sorted(chosen.tolist())]


def reference_items(seed: int, split: Split = "test") -> Iterator[Item]:
    """Endless questions about scenes of the reference VLM, balanced over the capabilities.

    One question a scene keeps items independent, so that a given number of answers tells as much as it can.
    """
    from vtc.reference.questions import CATEGORIES
    from vtc.reference.scenes import scene

    asked = dict.fromkeys(CATEGORIES, 0)
    for index in itertools.count():
        drawn = scene(split, seed, index)
        category = min(
            {question.category for question in drawn.questions}, key=lambda c: (asked[c], CATEGORIES.index(c))
        )
        options = [question for question in drawn.questions if question.category == category]
        question = options[int(np.random.default_rng([seed, index]).integers(len(options)))]
        asked[category] += 1
        name = f"{split}-{seed}-{index:06d}"
        yield _reference_item(name, name, Image.fromarray(drawn.image), question)


def reference_scenes(seed: int, split: Split) -> Iterator[list[Item]]:
    """Endless scenes of the reference VLM, each with all its questions: what a part of a model is trained on."""
    from vtc.reference.scenes import scene

    for index in itertools.count():
        drawn = scene(split, seed, index)
        name = f"{split}-{seed}-{index:06d}"
        image = Image.fromarray(drawn.image)
        yield [
            _reference_item(f"{name}-{number}", name, image, question)
            for number, question in enumerate(drawn.questions)
        ]


def _reference_item(name: str, image_id: str, image: Image.Image, question: Question) -> Item:
    return Item(
        id=name,
        image=image,
        image_id=image_id,
        question=question.text,
        answers=(question.answer,),
        category=question.category,
        evidence=question.evidence,
        chance=question.chance,
    )


def _data_file(path: Path) -> Path:
    try:
        file = path / FILE_NAME if path.is_dir() else path
        there = file.is_file()
    except OSError as error:
        raise InputError(f"--data {str(path)[:200]}: cannot be found ({error.strerror})") from None
    if not there:
        raise InputError(f"{file}: no such file; --data takes a directory with {FILE_NAME}, or 'reference'")
    return file


def read_jsonl(file: Path) -> list[Item]:
    """Read a data file.

    Raises
    ------
    InputError
        At the first line that cannot be used; the message counts the others.
    """
    items: list[Item] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    for number, line in read_lines(file):
        try:
            item = Item(**parse_record(line, file.parent), where=f"{file}:{number}")
        except ValueError as error:
            problems.append(f"{file}:{number}: {error}")
            continue
        if (first := lines.setdefault(item.id, number)) != number:
            problems.append(f"{file}:{number}: has the id '{item.id}' of line {first}; ids must differ")
        items.append(item)
    if problems:
        rest = len(problems) - 1
        more = f" (and {rest} more faulty line{'s' if rest > 1 else ''})" if rest else ""
        hint = "; a line is one whole JSON object" if "is not JSON" in problems[0] else ""
        raise InputError(problems[0] + hint + more)
    if not items:
        raise InputError(
            f"{file}: holds no items; each line is a JSON object with id, image, question, answers, category"
        )
    return items
