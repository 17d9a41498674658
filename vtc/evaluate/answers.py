"""Who is asked, and what it answers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.data.datasets import Item
from vtc.evaluate.asking import Asking
from vtc.evaluate.evidence import Locator
from vtc.evaluate.metrics import answer_score
from vtc.evaluate.one_by_one import OneByOne, Timed
from vtc.evaluate.predictor import Predictor

Found = Mapping[str, Mapping[str, Any]]
"""What came of each item, by its id, as plain JSON."""


@dataclass(frozen=True)
class Contestant:
    """A model under a name, with the prompt template it answers through.

    Attributes
    ----------
    name : str
    predictor : Predictor
    chat : callable
        Turns a question into a whole prompt with one image placeholder.
    locator : Locator or None
        Where its kept tokens lie; None where they are not places on the original's grid.
    layer_average : float or None
        Visual tokens of an image, mean over the original's decoder layers; None: `image_tokens` in every layer.
    others : tuple of Predictor
        With the first they share the questions out among themselves: an average over draws at the cost of one.
    run_as : str
        Which of a bundle's variants is run, and on what; empty where PyTorch runs it.
    """

    name: str
    predictor: Predictor
    chat: Callable[[str], str]
    locator: Locator | None = None
    layer_average: float | None = None
    others: tuple[Predictor, ...] = ()
    run_as: str = ""

    def turn(self, item: Item) -> int:
        """Number of the predictor whose turn an item is: its id alone decides, not what is asked before or with it."""
        return zlib.crc32(item.id.encode()) % (1 + len(self.others))

    def predictor_of(self, item: Item) -> Predictor:
        """The predictor whose turn an item is."""
        return (self.predictor, *self.others)[self.turn(item)]


@dataclass(frozen=True)
class Trial:
    """A model that is judged.

    Attributes
    ----------
    contestant : Contestant or None
        None judges nothing: the original is measured alone.
    baselines : sequence of Contestant
        What is measured beside it.
    left_out : mapping of str
        Baselines that were asked for and cannot be, and why.
    """

    contestant: Contestant | None
    baselines: Sequence[Contestant] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What one model answered to n items.

    Attributes
    ----------
    scores : array of shape (n,)
        Between 0 and 1.
    texts : tuple of n str
    token_ids : tuple of n tuples of int
        Without the end token.
    """

    scores: NDArray[np.float64]
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """Mean score."""
        return float(self.scores.mean())


def ask_all(contestant: Contestant, items: Sequence[Item], asking: Asking, role: str, label: str = "") -> Found:
    """Ask a model every question that can be asked.

    Parameters
    ----------
    contestant : Contestant
    items : sequence of Item
    asking : Asking
    role : str
        What the model is in the comparison; answers are noted under it.
    label : str
        What progress calls it; its name without one.

    Returns
    -------
    mapping
        ``text`` and ``token_ids`` (without the end token) of each answer; ``budgets`` and ``ms`` where it was
        :class:`~vtc.evaluate.one_by_one.Timed`.
    """
    timed = isinstance(contestant.predictor, OneByOne)

    def run(batch: Sequence[Item]) -> list[dict[str, Any]]:
        images, prompts = [[item.load()] for item in batch], [contestant.chat(item.question) for item in batch]
        generations = contestant.predictor_of(batch[0]).generate(images, prompts, asking.effort.max_new_tokens)
        return [
            {"text": one.text, "token_ids": [int(token) for token in one.token_ids]}
            | (one.to_dict() if isinstance(one, Timed) else {})
            for one in generations
        ]

    def usable(note: Mapping[str, Any]) -> bool:
        ids = note.get("token_ids")
        told = isinstance(note.get("text"), str) and (Timed.told(note) or not timed)
        return told and isinstance(ids, list) and all(isinstance(token, int) for token in ids)

    return asking.all(items, run, usable, role, f"{label or contestant.name}: answers", contestant.turn)


def answers_to(items: Sequence[Item], found: Found) -> Answers:
    """What a model answered to items, scored."""
    texts = tuple(str(found[item.id]["text"]) for item in items)
    scores = [answer_score(text, item.answers) for text, item in zip(texts, items, strict=True)]
    token_ids = tuple(tuple(found[item.id]["token_ids"]) for item in items)
    return Answers(np.asarray(scores, dtype=np.float64), texts, token_ids)
