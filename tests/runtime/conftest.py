"""Toy bundles: one for each way of cutting a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.toy import Segment, Toy, make_toy, write_toy_bundle

TOYS = {
    "one segment": make_toy(),
    "original positions": make_toy(positions="original"),
    "visual exit": make_toy(segments=(Segment((0, 1)), Segment((2,), "text")), positions="original"),
    "skipped in the middle": make_toy(
        segments=(Segment((0,)), Segment((1,), "text"), Segment((2,)), Segment((3,), "text")), keep=5
    ),
    "skipped at once": make_toy(segments=(Segment((0,), "text"), Segment((1,))), keep=2),
}


@pytest.fixture(scope="session")
def toy_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of all toys."""
    root = tmp_path_factory.mktemp("toys")
    return {name: write_toy_bundle(toy, root / name.replace(" ", "-")) for name, toy in TOYS.items()}


@pytest.fixture(scope="session")
def toy_bundle(toy_bundles: dict[str, Path]) -> Path:
    """Directory of the plainest toy."""
    return toy_bundles["one segment"]


@pytest.fixture(params=TOYS)
def toy_and_bundle(request: pytest.FixtureRequest, toy_bundles: dict[str, Path]) -> tuple[Toy, Path]:
    """Each toy with its bundle."""
    return TOYS[request.param], toy_bundles[request.param]


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise of (width, height) pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
