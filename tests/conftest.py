"""Fixtures that many tests share: a tiny checkpoint and its adapter, and what is exported of any model."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sharing import shared_exports
from tests.tiny import image, write_checkpoint
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.shapes import TINY_MIXTURE, TINY_SIGLIP


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker is left with one while the others have run out of tests."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Collect garbage less often: an export makes so many objects that a tenth of its time went into it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No graph is exported by two tests, of this worker or another."""
    base = tmp_path_factory.getbasetemp()
    store = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    store.mkdir(exist_ok=True)
    with shared_exports(store):
        yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what an earlier run, another worker or the user has left in the cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random LLaVA."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapter(checkpoint: Path) -> VLMAdapter:
    """The tiny model, loaded."""
    return load_adapter(checkpoint)


@pytest.fixture(scope="session")
def mixture_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random LLaVA whose decoder is a mixture of 8 experts, of which a token passes 2."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "mixture", like=TINY_MIXTURE)


@pytest.fixture(scope="session")
def mixture(mixture_checkpoint: Path) -> VLMAdapter:
    """The tiny mixture of experts, loaded."""
    return load_adapter(mixture_checkpoint)


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> VLMAdapter:
    """A tiny model with a SigLIP tower, which has no CLS token, and a Qwen2 decoder, whose head is its embedding."""
    return load_adapter(write_checkpoint(tmp_path_factory.mktemp("models") / "siglip", like=TINY_SIGLIP))


@pytest.fixture(scope="session", params=["adapter", "siglip"])
def each_adapter(request: pytest.FixtureRequest) -> VLMAdapter:
    """One tiny model after the other."""
    adapter: VLMAdapter = request.getfixturevalue(request.param)
    return adapter


@pytest.fixture(scope="session")
def prompts(adapter: VLMAdapter) -> tuple[list[list[object]], list[str]]:
    """Prompts of different length: one image, two images, an image in the middle, none."""
    token = adapter.image_token
    images = [[image(0)], [image(1), image(2)], [image(3)], []]
    texts = [
        adapter.chat("what digit is red ?"),
        adapter.chat("is there a circle ?", images=2),
        f"<s><|user|>look here {token} what is it<|assistant|>",
        adapter.chat("how many ?", images=0),
    ]
    return images, texts
