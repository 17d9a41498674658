"""The bundle that tests of engine builds build."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.conftest import TOYS
from tests.runtime.toy import write_toy_bundle
from vtc.bundle.manifest import Manifest, load_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Manifest:
    """A toy of two segments."""
    return load_manifest(write_toy_bundle(TOYS["visual exit"], tmp_path / "bundle"))
