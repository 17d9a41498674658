"""Manifests of earlier schemas in the words of the present one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtc.errors import BundleError, ModelError
from vtc.files import read_json
from vtc.inputs.generation import FILE, rules_of

OLDEST = 3
"""The first schema that can be brought up to date; bundles of earlier ones have to be exported again."""


def upgraded(manifest: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Bring a manifest of schema 3 or later up to date.

    Schema 4 counts visual tokens of a run of placeholders as such, says whether tokens have places in the image, and
    calls what images are served image options. Schema 5 has the rules of the checkpoint's generation settings, which
    earlier bundles have in a file that was not looked at. Schema 6 has variants, of which a precision's portable graphs
    are one, and calls quantised precisions that compute in float16 so.

    Parameters
    ----------
    manifest : mapping
    root : Path
        The bundle's directory.

    Raises
    ------
    BundleError
        If its generation settings cannot be read, or ask for something that is not served.
    """
    found = dict(manifest)
    if found["schema"] < 4:
        found |= _with_places(found)
    if found["schema"] < 5:
        found["generation"] = {**found["generation"], "rules": _rules(root)}
    if found["schema"] < 6:
        found |= _with_variants(found)
    return found


def _rules(root: Path) -> dict[str, Any]:
    path = root / FILE
    try:
        settings = read_json(path) if path.exists() else {}
        return asdict(rules_of(settings if isinstance(settings, dict) else {}))
    except ModelError as error:
        raise BundleError(f"{root}: {error}; then export it again") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None


_FLOAT16 = {"int4": "q4f16", "int8": "q8f16"}


def _with_variants(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What schema 6 says in other words."""
    names = [_FLOAT16.get(name, name) for name in manifest["precisions"]]
    return {
        "variants": [{"name": name, "precision": name} for name in names],
        "graphs": {graph: _renamed(paths, _FLOAT16) for graph, paths in manifest["graphs"].items()},
        "parity": _renamed(manifest["parity"], _FLOAT16),
    }


def _with_places(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What schema 4 says in other words."""
    has_places = _has_places(manifest["plan"])
    return {
        "has_places": has_places,
        "model": _renamed(manifest["model"], {"serving": "image_options"}),
        "images": [
            _renamed(
                served,
                {
                    "tokens": "tokens_per_span",
                    "keep": "keep_per_span",
                    "segment_tokens": "segment_tokens_per_span",
                },
            )
            for served in manifest["images"]
        ],
        "plan": {**manifest["plan"], "has_places": has_places},
        "baseline_plan": {**manifest["baseline_plan"], "has_places": True},
    }


def _has_places(plan: Mapping[str, Any]) -> bool:
    """Whether no stage has put a smaller grid in place of a grid, which was the only way to lose places."""
    return not any(stage["grids_out"] and stage["grids_out"] != stage["grids_in"] for stage in plan["stages"])


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in data.items()}
