"""What an area of the fuzzer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.case import Case, Change


def nothing_wrong(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """Find nothing wrong with any result."""
    return ""


@dataclass(frozen=True)
class Document:
    """A JSON file whose places can be gone through one by one.

    Attributes
    ----------
    base, file : str
        Where it is.
    args : tuple of str
        The command that reads it.
    then : tuple of Change
        What follows a change to it.
    """

    base: str
    file: str
    args: tuple[str, ...]
    then: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Area:
    """A kind of input.

    Attributes
    ----------
    build : callable
        Writes the bases, each a directory, into a directory.
    draw : callable
        Draws a case, given the directory with the bases.
    wrong : callable
        Says what is wrong with a result beyond its exit code: of a case, its exit code and stdout, the directory that
        it ran in, and the one with the bases.
    torch : bool
        Whether its commands import torch.
    documents : sequence of Document
        What :mod:`tests.fuzz.grid` goes through; those that a base lacks are left out.
    """

    build: Callable[[Path], None]
    draw: Callable[[Random, Path], Case]
    wrong: Callable[[Case, int, str, Path, Path], str] = nothing_wrong
    torch: bool = False
    documents: Sequence[Document] = ()
