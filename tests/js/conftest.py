"""These tests need Node and what `make test-js` installs; they are skipped without."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker that `make test-js` selects."""
    config.addinivalue_line("markers", "js: needs Node 20 and the npm packages of tests/js")
