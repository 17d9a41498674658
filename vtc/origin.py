"""Where an artifact comes from, as its manifest has it: checked before anybody goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtc.errors import BundleError

_NAMES = ("name", "family", "sha256")


def check_origin(manifest: Mapping[str, Any], file: Path) -> None:
    """Make sure that a manifest says which checkpoint, and which recipe, an artifact was made of.

    Parameters
    ----------
    manifest : mapping
        Of a bundle, which holds its recipe, or of a compressed model, which has it in a file.
    file : Path
        What to call it in an error.

    Raises
    ------
    BundleError
        If it does not.
    """
    model, recipe = manifest.get("model"), manifest.get("recipe", {"name": "", "stages": []})
    known = isinstance(model, dict) and all(isinstance(model.get(name), str) for name in _NAMES)
    known = known and isinstance(manifest.get("plan"), dict) and isinstance(manifest.get("recipe_digest"), str)
    made = isinstance(recipe, dict) and isinstance(recipe.get("name"), str) and isinstance(recipe.get("stages"), list)
    if not known or not made:
        remedy = "compress again" if manifest.get("kind") == "compressed" else "export it again"
        raise BundleError(f"{file}: does not say what it was made of; {remedy}")
