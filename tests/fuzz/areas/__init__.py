"""Areas of the fuzzer, each a module with its own bases, its own generator and what it knows of right results."""

from __future__ import annotations

from tests.fuzz.area import Area
from tests.fuzz.areas import bundles, checkpoints, data, images, notes, recipes, states, templates

AREAS: dict[str, Area] = {
    "recipes": recipes.AREA,
    "images": images.AREA,
    "data": data.AREA,
    "templates": templates.AREA,
    "bundles": bundles.AREA,
    "checkpoints": checkpoints.AREA,
    "states": states.AREA,
    "notes": notes.AREA,
}
"""Area → how it is fuzzed; those that need torch last."""
