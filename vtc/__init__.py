"""Visual token compression: vision-language models on fewer visual tokens, exported as bundles.

Names are looked up when they are first used, so that ``import vtc`` loads neither PyTorch nor a runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.api import (
        CompressResult,
        ExportResult,
        PlacedExperts,
        bench,
        compress,
        expert_skipping,
        expert_statistics,
        export,
        inspect,
        load,
        optimize,
        place_experts,
        validate,
    )
    from vtc.compressed.elastic import ElasticModel
    from vtc.evaluate.validate import Thresholds
    from vtc.facts.layout import ImageOptions
    from vtc.recipe import Recipe, load_recipe
    from vtc.runtime.budgets import Entropy
    from vtc.runtime.options import RuntimeOptions
    from vtc.runtime.vlm import VLM

    __version__: str

__all__ = [
    "VLM",
    "CompressResult",
    "ElasticModel",
    "Entropy",
    "ExportResult",
    "ImageOptions",
    "PlacedExperts",
    "Recipe",
    "RuntimeOptions",
    "Thresholds",
    "__version__",
    "bench",
    "compress",
    "expert_skipping",
    "expert_statistics",
    "export",
    "inspect",
    "load",
    "load_recipe",
    "optimize",
    "place_experts",
    "validate",
]

_HOMES = {
    "VLM": "vtc.runtime.vlm",
    "ElasticModel": "vtc.compressed.elastic",
    "Entropy": "vtc.runtime.budgets",
    "ImageOptions": "vtc.facts.layout",
    "Recipe": "vtc.recipe",
    "RuntimeOptions": "vtc.runtime.options",
    "Thresholds": "vtc.evaluate.validate",
    "load_recipe": "vtc.recipe",
}
"""Where a name lives; all others live in :mod:`vtc.api`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from vtc.runtime.versions import vtc_version

        return vtc_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "vtc.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
