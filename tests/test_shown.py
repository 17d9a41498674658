"""Foreign text cannot rule a terminal, forge lines or flood it."""

from __future__ import annotations

import pytest

from vtc.shown import LINE, NAME, line, shown, tamed


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain, ünïcödé, 日本語", "plain, ünïcödé, 日本語"),
        ("no\xa0break", "no\xa0break"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eexe\u2066", "\\u202eexe\\u2066"),
        ("a\nb\rc\u2028d\x85", "a\\nb\\rc\\u2028d\\x85"),
        ("\x00\x07\x7f", "\\x00\\x07\\x7f"),
        ("\udc80", "\\udc80"),
        ("\ufeff\U000e0041", "\\ufeff\\U000e0041"),
        (7, "7"),
    ],
)
def test_what_is_no_letter_is_escaped(text: object, seen: str) -> None:
    assert shown(text) == seen


def test_long_text_loses_its_middle() -> None:
    text = "begin" + "x" * 10_000 + "end"
    assert len(shown(text)) < NAME
    assert shown(text).startswith("beginxxx")
    assert shown(text).endswith("xxxend")
    assert shown("x" * NAME) == "x" * NAME


def test_a_message_keeps_its_blanks_and_its_end() -> None:
    text = f"error:  {'x' * 5000}: no such file"
    assert len(line(text)) < LINE
    assert line(text).startswith("error:  xxx")
    assert line(text).endswith("xxx: no such file")
    assert len(line("x " * 5000)) < LINE


def test_answers_keep_their_lines() -> None:
    assert tamed("a\n\tb\x1b[2J\n") == "a\n\tb\\x1b[2J\n"
