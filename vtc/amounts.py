"""Sizes and times in words."""

from __future__ import annotations


def gigabytes(size: int) -> str:
    """A size in words."""
    return f"{size / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    """A time in words, to the digits that an estimate has."""
    unit, length = next(
        ((unit, length) for unit, length in (("h", 3600), ("min", 60)) if seconds >= 1.5 * length), ("s", 1)
    )
    count = max(seconds / length, 1.0)
    return f"{count:.1f} {unit}" if count < 10 and length > 1 else f"{count:.0f} {unit}"
