"""A cache with room, in whatever order its places are filled, computes what one that grows does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.room import HostStore, give_room
from tests.runtime.test_vlm import CONTINUATIONS, IMAGES, PROMPTS
from tests.runtime.toy import Toy, make_toy, write_toy_bundle
from vtc.errors import InputError
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.past import FixedPast
from vtc.runtime.vlm import VLM


@pytest.mark.parametrize("step", [1, 3, 64])
def test_logits_are_those_of_a_growing_cache(
    toy_and_bundle: tuple[Toy, Path], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = toy_and_bundle
    model = VLM.load(path, provider="cpu")
    growing = model.score(IMAGES, PROMPTS, CONTINUATIONS)
    tokens = model.generate(IMAGES, PROMPTS, 12)
    store = give_room(monkeypatch, step)
    for scores, wanted in zip(model.score(IMAGES, PROMPTS, CONTINUATIONS), growing, strict=True):
        np.testing.assert_allclose(scores, wanted, atol=1e-4)
    again = model.generate(IMAGES, PROMPTS, 12)
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in tokens]
    assert again[0].timings.kv_bytes == tokens[0].timings.kv_bytes
    assert again[0].timings.segment_lengths == tokens[0].timings.segment_lengths
    assert store.taken == store.given_back > 0


def test_half_precision_caches_have_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VLM.load(write_toy_bundle(make_toy(half=True), tmp_path / "half"), provider="cpu")
    growing = model.generate(IMAGES, PROMPTS, 8)
    give_room(monkeypatch, 4)
    assert [answer.token_ids for answer in model.generate(IMAGES, PROMPTS, 8)] == [one.token_ids for one in growing]


def test_shapes_stay_while_there_is_room(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch, 32)
    seen = []
    run = Graph.run

    def watched(self: Graph, feeds: dict[str, Any], host: Collection[str] = ()) -> list[Any]:
        seen.append(feeds)
        return run(self, feeds, host)

    model = VLM.load(toy_bundle, provider="cpu")
    model.text.facts = replace(model.manifest.generation, eos_token_ids=())
    running = model.start([IMAGES[0]], [PROMPTS[0]], 10)
    monkeypatch.setattr(Graph, "run", watched)
    for _ in running:
        pass
    steps = [feeds for feeds in seen if "attention_mask" in feeds]
    assert len(steps) > 2
    assert {feeds["attention_mask"].shape for feeds in steps} == {(1, 33)}
    assert len({id(feeds["past_key_values.0.key"]) for feeds in steps}) == 1
    filled = [int(feeds["attention_mask"].sum()) for feeds in steps]
    assert np.diff(filled).tolist() == [1] * (len(filled) - 1)


def test_room_ends_where_the_engine_does(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VLM.load(toy_bundle, provider="cpu")
    graph = model.decoder.segments[0].graph
    monkeypatch.setattr(graph, "most_past", 2)
    store = HostStore()
    past = FixedPast(graph, (1, 1, 4), store)
    present = past.tensors
    past.begin(present, np.zeros((1, 0), dtype=np.int64), None)
    one = np.ones((1, 1), dtype=np.int64)
    for _ in range(2):
        past.append(store.take(present, past.places + 1), one)
    assert past.length == past.places == 2
    with pytest.raises(InputError, match=r"more than the 2 tokens of cache.*--max-new-tokens"):
        past.append(store.take(present, 3), one)
