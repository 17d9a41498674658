"""The DCT low-pass equals scipy's transforms and the authors' results."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.stages.frequency_filter import FrequencyFilter, dct_matrix, retained_energy
from vtc.visual_tokens import in_grids

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "fourier.npz")
CASES = sorted(name for name in GOLDEN.files if name.endswith("_scipy_ortho_f64"))


def run(name: str, *, preserve_mean: bool) -> np.ndarray:
    height, width, keep_height, keep_width = map(int, re.match(r"(\d+)x(\d+)_to(\d+)x(\d+)_", name).groups())  # type: ignore[union-attr]
    features = torch.from_numpy(GOLDEN[f"{height}x{width}_feats"])
    low_pass = FrequencyFilter([(height, width)], [(keep_height, keep_width)], preserve_mean=preserve_mean)
    return low_pass(in_grids(features, ((height, width),))).features[0].numpy()


@pytest.mark.parametrize("name", CASES)
def test_equals_the_orthonormal_transform_of_scipy(name: str) -> None:
    np.testing.assert_allclose(run(name, preserve_mean=False), GOLDEN[name], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_authors_transform(name: str) -> None:
    official = GOLDEN[name.replace("scipy_ortho_f64", "official_ortho_f32")]
    np.testing.assert_allclose(run(name, preserve_mean=False), official, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_preserves_the_mean(name: str) -> None:
    np.testing.assert_allclose(
        run(name, preserve_mean=True), GOLDEN[name.replace("scipy_ortho", "meanpreserving")], atol=1e-4
    )


def test_constant_field_is_unchanged() -> None:
    field = torch.full((1, 64, 3), 2.5)
    filtered = FrequencyFilter([(8, 8)], [(3, 5)])(in_grids(field, ((8, 8),)))
    torch.testing.assert_close(filtered.features, torch.full((1, 15, 3), 2.5))
    assert filtered.grids == ((3, 5),)
    assert filtered.indices[0].tolist() == list(range(15))


def test_dct_matrix_is_orthonormal() -> None:
    torch.testing.assert_close(dct_matrix(7) @ dct_matrix(7).T, torch.eye(7, dtype=torch.float64))


def test_retained_energy_grows_to_one() -> None:
    features = torch.from_numpy(GOLDEN["8x8_feats"])
    energies = [retained_energy(features, (8, 8), (side, side)) for side in range(1, 9)]
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(1.0)


def test_runs_in_the_precision_of_the_tokens() -> None:
    features = torch.randn(1, 16, 3)
    low_pass = FrequencyFilter([(4, 4)], [(2, 2)])
    exact = low_pass(in_grids(features, ((4, 4),))).features
    half = low_pass(in_grids(features.half(), ((4, 4),))).features
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("first_real", "expected"),
    [
        (0, [False, False, False]),
        (2, [True, False, False]),  # 6 rows become 3: each stands for two
        (3, [True, False, False]),
        (5, [True, True, False]),
    ],
)
def test_a_token_is_padding_where_it_stands_for_nothing_else(first_real: int, expected: list[bool]) -> None:
    padding = torch.zeros(1, 6, 4, dtype=torch.bool)
    padding[:, :first_real] = True
    tokens = replace(in_grids(torch.ones(1, 24, 8), [(6, 4)]), padding=padding.flatten(1))
    filtered = FrequencyFilter([(6, 4)], [(3, 3)])(tokens)
    assert filtered.padding.tolist() == [[bar for bar in expected for _ in range(3)]]
