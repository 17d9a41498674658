"""Bundles that several files of tests look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from exporters.onnx import ExportRequest, export
from tests.exporters.export_request import request
from tests.tiny import RECIPES
from vtc.models.base import VLMAdapter

Exported = Callable[[str], tuple[ExportRequest, Path]]


def exports_of(adapter: VLMAdapter, work: Path) -> Exported:
    """Bundles of a model by recipes of `RECIPES`, each exported once."""

    @cache
    def bundle(name: str) -> tuple[ExportRequest, Path]:
        wanted = request(adapter, *RECIPES[name])
        parity = export(wanted, work / name)["fp32"]
        assert parity.indices_equal == (1.0 if wanted.model.plan.chooses_tokens else None)
        assert parity.greedy_match == 1.0
        return wanted, work / name

    return bundle


@pytest.fixture(scope="session")
def exported(adapter: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The tiny model by a recipe, for all tests of the group "exported"."""
    return exports_of(adapter, tmp_path_factory.mktemp("bundles"))
