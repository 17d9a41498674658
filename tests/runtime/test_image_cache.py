"""An image that is asked about twice is encoded once, and the answers are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtc
from tests.runtime.conftest import picture
from vtc.errors import InputError
from vtc.runtime.image_cache import ImageCache, content_key

QUESTIONS = ["<image> what is red", "<image> red"]


def counted(model: vtc.VLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each run of the vision graph."""
    graph, runs = model.vision.open(model.manifest.images[0]), []
    run = graph.run

    def counting(feeds: Any, host: Any = ()) -> Any:
        runs.append(len(feeds["pixel_values"]))
        return run(feeds, host)

    monkeypatch.setattr(graph, "run", counting)
    return runs


def test_second_question_about_an_image_skips_the_vision_graph(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = vtc.load(toy_bundle, provider="cpu")
    keeping = vtc.load(toy_bundle, provider="cpu", image_cache=2**20)
    runs = counted(keeping, monkeypatch)
    for question in QUESTIONS:
        asked = [[picture(0)]], [question], [[5, 6, 7]]
        np.testing.assert_array_equal(keeping.score(*asked)[0], plain.score(*asked)[0])
    assert runs == [1]
    assert keeping.generate([[picture(0)]], QUESTIONS[:1], 2)[0].timings.vision_ms == 0
    assert keeping.generate([[picture(1)]], QUESTIONS[:1], 2)[0].timings.vision_ms > 0
    assert runs == [1, 1]


def test_nothing_is_kept_by_default(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vtc.load(toy_bundle, provider="cpu")
    runs = counted(model, monkeypatch)
    for question in QUESTIONS:
        model.generate([[picture(0)]], [question], 1)
    assert runs == [1, 1]


def test_what_is_kept_is_bounded_and_the_longest_unused_leaves() -> None:
    cache: ImageCache[str] = ImageCache(10)
    cache.put(b"a", "a", 4)
    cache.put(b"b", "b", 4)
    assert cache.get(b"a") == "a"
    cache.put(b"c", "c", 4)
    cache.put(b"large", "large", 11)
    assert [cache.get(key) for key in (b"a", b"b", b"c", b"large")] == ["a", None, "c", None]
    assert cache.held == 8


def test_key_tells_graphs_shapes_types_and_values_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    feeds = [zeros, zeros.reshape(3, 2), zeros.view(np.int32), zeros + 1]
    keys = {content_key("", {"pixel_values": one}) for one in feeds} | {content_key("_1", {"pixel_values": zeros})}
    assert len(keys) == 5


def test_impossible_options_are_refused() -> None:
    with pytest.raises(InputError, match="at least 0 bytes"):
        vtc.RuntimeOptions(image_cache=-1)
    with pytest.raises(InputError, match="openvino keeps no images"):
        vtc.RuntimeOptions("openvino", image_cache=1)
