"""A toy original and a pruned toy, as bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.bundles import bundle_with_plan
from tests.runtime.toy import make_toy


@pytest.fixture(scope="session")
def original_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 16 visual tokens."""
    return bundle_with_plan(make_toy(keep=16), tmp_path_factory.mktemp("bundles") / "whole")


@pytest.fixture(scope="session")
def pruned_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 of 16 visual tokens."""
    return bundle_with_plan(make_toy(keep=3), tmp_path_factory.mktemp("bundles") / "pruned")
