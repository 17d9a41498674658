"""Decoders that several tests rewrite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporters.rewriting.decoders import export_decoder


@pytest.fixture(scope="session")
def llava_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder of a tiny LLaVA."""
    return export_decoder("llava", tmp_path_factory.mktemp("llava"))
