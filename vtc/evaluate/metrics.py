"""Is an answer right? Normalised exact match, and the VQA consensus score where ten people answered."""

from __future__ import annotations

import re
from collections.abc import Sequence

ANNOTATORS = 10
"""Answers per question in VQA, TextVQA and VizWiz: a list this long is people's answers, not synonyms."""

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_PUNCTUATION = ';:/[]"(){}=+\\_-<>@`,?!|*&'
_APOSTROPHES = re.compile("['\u2018\u2019]")
_POINT_NOT_IN_NUMBER = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")


def normalise(answer: str, articles: bool = False) -> str:
    """An answer in the form in which answers are compared.

    Lower case; punctuation removed where it stands at a word's edge and turned into a space inside a word;
    points kept only before a digit and commas between digits dropped; articles removed; number words as
    digits. Apostrophes are dropped instead of being restored from a table of contractions, which makes the
    same answers equal.

    Based on the answer processing of VQA evaluation (Antol et al. 2015, arXiv 1505.00468;
    visualqa.org/evaluation).

    Parameters
    ----------
    answer : str
    articles : bool
        Whether articles stay.

    Returns
    -------
    str
    """
    text = _APOSTROPHES.sub("", " ".join(answer.lower().split()))
    text = _COMMA_IN_NUMBER.sub("", text)
    padded = f" {text} "
    for mark in _PUNCTUATION:
        if mark in padded:
            at_edge = f"{mark} " in padded or f" {mark}" in padded
            padded = padded.replace(mark, "" if at_edge else " ")
    words = _POINT_NOT_IN_NUMBER.sub("", padded).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if articles or word not in _ARTICLES)


def same_answer(given: str, other: str) -> bool:
    """Whether two answers are the same in normal form.

    An answer that normalises to nothing, such as the choice "A" or "-", is compared with its articles, or as it
    stands where it has no word at all.
    """
    if normalise(given) or normalise(other):
        return normalise(given) == normalise(other)
    first, second = normalise(given, articles=True), normalise(other, articles=True)
    return first == second if first or second else given.strip() == other.strip()


def answer_score(answer: str, accepted: Sequence[str]) -> float:
    """Score of an answer between 0 and 1.

    With fewer than :data:`ANNOTATORS` accepted answers they are synonyms, and any match scores 1. With that
    many or more they are what people said, and the score is the VQA consensus: leave each person out in turn,
    min(matches / 3, 1), averaged.

    Based on the VQA accuracy (Antol et al. 2015, arXiv 1505.00468, section 5; visualqa.org/evaluation). It differs for
    references that normalise to nothing, such as "A": see :func:`same_answer`. An empty answer is never right.

    Parameters
    ----------
    answer : str
        The model's answer.
    accepted : sequence of str
        Reference answers, at least one.

    Returns
    -------
    float
    """
    hits = [bool(answer.strip()) and same_answer(answer, reference) for reference in accepted]
    if len(hits) < ANNOTATORS:
        return float(any(hits))
    total = sum(hits)
    return sum(min((total - hit) / 3, 1.0) for hit in hits) / len(hits)
