"""Versions of vtc and of the packages it uses, read from their metadata: nothing is imported."""

from __future__ import annotations

from importlib import metadata


def package_version(*distributions: str) -> str | None:
    """Return the version of the first of some distributions that is installed, or None."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def vtc_version() -> str:
    """Return vtc's own version; in a checkout that is not installed there is none."""
    return package_version("vtc") or "(not installed)"
