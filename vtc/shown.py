"""Foreign text, made fit to be shown: names, keys and values that a file, a model or a command line brought along.

Such text may hold escape sequences that rule a terminal, marks that turn the direction of writing, line breaks that
forge lines of their own, or millions of letters. What is for programs (JSON) is not shown and stays exact.
"""

from __future__ import annotations

import unicodedata

NAME = 100
"""Letters that are shown of a name, a key or a value."""
PATH = 200
"""Letters that are shown of a path, or of any word of a line."""
LINE = 1000
"""Letters of a line, which is a message with what it quotes; a command that it tells is whole."""

_JOINERS = "\u200c\u200d"
"""Format characters that words and emoji need."""


def shown(text: object, limit: int = NAME) -> str:
    """Write foreign text in a line.

    Parameters
    ----------
    text : object
    limit : int
        Letters; a longer text loses its middle.

    Returns
    -------
    str
        Without control, format and unassigned characters and line breaks, which are written as Python's escapes.
    """
    whole = str(text)
    if len(whole) > limit:
        # Escapes are longer than what they stand for, so what is left out is left out first.
        whole = f"{whole[: limit * 2 // 3]}…{whole[-(limit // 4) :]}"
    return tamed(whole, keep="")


def tamed(text: str, keep: str = "\n\t") -> str:
    """Write characters that are not shown as Python's escapes.

    Parameters
    ----------
    text : str
        Of any length and number of lines.
    keep : str
        Control characters that stay.
    """
    return text if text.isprintable() else "".join(c if c in keep or _visible(c) else _escaped(c) for c in text)


def line(text: str) -> str:
    """Write a message in a line, with its blanks as they are and what it quotes cut to what can be read.

    Parameters
    ----------
    text : str
        A message of which some parts may be foreign.
    """
    return shown(" ".join(shown(word, PATH) for word in text.split(" ")), LINE)


def _visible(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
