"""Manifests of earlier schemas in the words of the present one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLDEST = 3
"""The first schema that can be brought up to date; bundles of earlier ones have to be exported again."""


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a manifest of schema 3 or later up to date.

    Schema 4 counts visual tokens of a run of placeholders as such, says whether tokens have places in the image, and
    calls what images are served image options.
    """
    if manifest["schema"] != 3:
        return dict(manifest)
    has_places = _has_places(manifest["plan"])
    return {
        **manifest,
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
