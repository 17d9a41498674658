"""What tests ask to be exported."""

from __future__ import annotations

from typing import Any

from exporters.onnx import ExportRequest
from tests.tiny import image, recipe
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin, served
from vtc.data.samples import Sample
from vtc.models.base import VLMAdapter

ORIGIN = Origin("tiny", "0" * 64)


def request(adapter: VLMAdapter, *stages: dict[str, Any], **options: Any) -> ExportRequest:
    """A model compressed by stages of a recipe, to be compared on two prompts at each of its budgets."""
    resolved = recipe(*stages)
    samples = [Sample([image(seed)], adapter.chat("what is it ?")) for seed in range(2 * max(1, len(resolved.budgets)))]
    return ExportRequest(served(apply_recipe(adapter, resolved), resolved), resolved, ORIGIN, samples, **options)
