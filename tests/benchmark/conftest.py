"""The toy bundles that evaluation uses are timed here."""

from __future__ import annotations

from tests.evaluate.conftest import original_bundle, pruned_bundle

__all__ = ["original_bundle", "pruned_bundle"]
