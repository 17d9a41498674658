"""The accuracy gate: passed, failed, or not enough data to say.

A limit that lies inside an interval is never called a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vtc.evaluate.stats import Interval, least_images

Status = Literal["pass", "fail", "inconclusive"]

LEAST_IMAGES = 10
"""With fewer images than this, resampling them says nothing at all."""


@dataclass(frozen=True)
class Check:
    """One figure held against one limit."""

    name: str
    value: float | None
    ci95: Interval | None
    comparison: Literal[">=", "<="]
    limit: float
    status: Status
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON."""
        return asdict(self) | {"ci95": list(self.ci95) if self.ci95 else None}


def at_least(name: str, value: float | None, interval: Interval | None, limit: float, images: int) -> Check:
    """Check that a figure is at least `limit`: pass if its whole interval is, fail if none of it is.

    Parameters
    ----------
    name : str
    value : float or None
        The figure; None where it is not defined (a retention when the original gets nothing right).
    interval : (low, high) or None
        Its 95 % interval.
    limit : float
    images : int
        Independent images that it rests on.
    """
    return _check(name, value, interval, ">=", limit, images)


def at_most(name: str, value: float | None, interval: Interval | None, limit: float, images: int) -> Check:
    """Check that a figure is at most `limit`; see :func:`at_least`."""
    return _check(name, value, interval, "<=", limit, images)


def retention_check(value: float | None, interval: Interval | None, limit: float, images: int) -> Check:
    """Check retention, which also needs so many images that a flawless result would be convincing.

    See :func:`vtc.evaluate.stats.least_images`.
    """
    check = at_least("retention", value, interval, limit, images)
    needed = least_images(limit)
    if check.status == "pass" and images < needed:
        reason = f"{images} images cannot show {limit:g} even without a loss; use at least {needed}"
        return Check(check.name, value, interval, ">=", limit, "inconclusive", reason)
    return check


def _check(
    name: str,
    value: float | None,
    interval: Interval | None,
    comparison: Literal[">=", "<="],
    limit: float,
    images: int,
) -> Check:
    status, reason = _judge(value, interval, comparison, limit, images)
    return Check(name, value, interval, comparison, limit, status, reason)


def _judge(
    value: float | None, interval: Interval | None, comparison: Literal[">=", "<="], limit: float, images: int
) -> tuple[Status, str]:
    if value is None or interval is None:
        return "inconclusive", "not defined on this data: the original gets nothing right"
    if images < LEAST_IMAGES:
        return "inconclusive", f"{images} images are too few to judge; use at least {LEAST_IMAGES}"
    low, high = interval
    span = f"interval {low:.4g} to {high:.4g}"
    holds = low >= limit if comparison == ">=" else high <= limit
    breaks = high < limit if comparison == ">=" else low > limit
    if holds:
        return "pass", f"{span} is {comparison} {limit:g}"
    if breaks:
        return "fail", f"{span} is not {comparison} {limit:g}"
    return "inconclusive", f"{span} contains the limit {limit:g}; use more data"


def overall(checks: list[Check]) -> Status:
    """The gate's outcome: any failure fails it, otherwise any open check leaves it open."""
    return worst([check.status for check in checks])


def worst(outcomes: Sequence[Status]) -> Status:
    """The outcome of several gates together."""
    if "fail" in outcomes:
        return "fail"
    return "inconclusive" if "inconclusive" in outcomes else "pass"
