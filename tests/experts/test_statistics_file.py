"""Expert statistics come back from their file as they were, and only from such a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.experts.uses import synthetic_routes, use_of
from vtc.errors import InputError
from vtc.experts.statistics import (
    SUMS,
    ExpertStatistics,
    Routes,
    check_model,
    load_statistics,
    save_statistics,
    use_digest,
)

ROUTES = synthetic_routes(prompts=2)
STATISTICS = ExpertStatistics("a" * 64, "drawn", 2, {"full": use_of(ROUTES, 16)}, "none")


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "experts.safetensors"
    save_statistics(path, STATISTICS)
    loaded = load_statistics(path)
    assert (loaded.model, loaded.data, loaded.prompts, loaded.recipe) == ("a" * 64, "drawn", 2, "none")
    for key in SUMS:
        np.testing.assert_array_equal(getattr(loaded.use(), key), getattr(STATISTICS.use(), key))
    for field in fields(Routes):
        np.testing.assert_array_equal(getattr(loaded.use().routes, field.name), getattr(ROUTES, field.name))
    assert use_digest(loaded.use()) == use_digest(STATISTICS.use())
    assert (loaded.use().layers, loaded.use().experts, loaded.use().active) == (2, 16, 2)


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts.safetensors"
    with pytest.raises(InputError, match="no such file; vtc calibrate MODEL --experts"):
        load_statistics(path)
    path.write_bytes(b"0123456789")
    with pytest.raises(InputError, match="not a file of expert statistics"):
        load_statistics(path)
    with pytest.raises(InputError, match="have no 'pruned' tokens; they have full"):
        STATISTICS.use("pruned")
    with pytest.raises(InputError, match="of model aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
        check_model(STATISTICS, "b" * 64, path)


def test_sums_of_routes_agree() -> None:
    use = STATISTICS.use()
    np.testing.assert_array_equal(np.diagonal(use.together, axis1=2, axis2=3), use.chosen)
    assert use.chosen.sum() == use.layers * use.active * use.tokens.sum()
