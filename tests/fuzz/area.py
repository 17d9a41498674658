"""What an area of the fuzzer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.case import Case


def nothing_wrong(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """Find nothing wrong with any result."""
    return ""


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
    """

    build: Callable[[Path], None]
    draw: Callable[[Random, Path], Case]
    wrong: Callable[[Case, int, str, Path, Path], str] = nothing_wrong
    torch: bool = False
