"""Answers are compared as VQA evaluation compares them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtc.evaluate.metrics import answer_score, normalise, same_answer


@pytest.mark.parametrize(
    ("given_answer", "normal"),
    [
        ("  Yes. ", "yes"),
        ("The red ball!", "red ball"),
        ("a cat", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("1,000", "1000"),
        ("red, blue", "red blue"),
        ("left/right", "left right"),
        ("don't", "dont"),
        ("top\tleft\n", "top left"),
        ("", ""),
        ("-", ""),
    ],
)
def test_normal_form(given_answer: str, normal: str) -> None:
    assert normalise(given_answer) == normal


@given(st.text())
def test_case_and_surrounding_space_do_not_matter(text: str) -> None:
    assert normalise(f" {text}\n") == normalise(text)


def test_any_synonym_is_right() -> None:
    assert answer_score("A sofa", ["couch", "sofa"]) == 1.0
    assert answer_score("chair", ["couch", "sofa"]) == 0.0


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators_give_the_vqa_consensus(matches: int, score: float) -> None:
    """The values that the VQA authors' code gives for 0 to 10 matches among ten."""
    people = ["red"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert answer_score("red", people) == pytest.approx(score)


@pytest.mark.parametrize("gold", ["A", "an", "The", "a.", "(A)", "-", "?", "..", "the a"])
def test_a_reference_without_a_word_is_met_by_itself_alone(gold: str) -> None:
    assert answer_score(gold, [gold]) == 1.0
    others = [
        other for other in ("", " ", "\n", "a", "an", "the", "-", "?", "b", "a cat") if not same_answer(other, gold)
    ]
    assert len(others) >= 8
    assert all(answer_score(other, [gold]) == 0.0 for other in others)
    assert all(answer_score("", [gold] * count) == 0.0 for count in (1, 9, 10, 12))


@given(st.text(), st.lists(st.text(), min_size=1, max_size=11))
def test_an_empty_answer_is_never_right(reference: str, references: list[str]) -> None:
    assert answer_score("", [reference]) == answer_score(" \n", references) == 0.0


def test_choices_are_told_apart() -> None:
    assert [answer_score(choice, ["A"]) for choice in ("A", "a", "A.", "(A)", "B", "The", "An", "")] == [1] * 4 + [
        0
    ] * 4
