from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny LLaVA, to be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))
