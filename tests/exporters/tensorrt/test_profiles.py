"""Profiles: whatever the runtime feeds a graph lies inside one of them, and a decoder's second is one token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters.device import graph_inputs
from exporters.tensorrt.profiles import profiles
from tests.runtime.conftest import TOYS, picture
from tests.runtime.toy import write_toy_bundle
from vtc.bundle.engines import Limits, Profile
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import InputError
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.vlm import VLM

LIMITS = Limits(batch=2, images=2, text=40, new_tokens=4)


@pytest.fixture(scope="module")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(TOYS["one segment"], tmp_path_factory.mktemp("toys") / "bundle")


def all_profiles(manifest: Manifest, limits: Limits) -> dict[str, tuple[Profile, ...]]:
    """Those of every graph of a bundle."""
    precision = manifest.precisions[0]
    return {
        graph: profiles(manifest, graph, graph_inputs(manifest.graph(graph, precision)), limits)
        for graph in manifest.graphs
    }


def holds(profile: Profile, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a graph may be fed these shapes."""
    for name, shape in shapes.items():
        least, _, most = profile.shapes[name]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return False
    return True


def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """A list that fills with the graph and the shapes of every run."""
    seen: list[tuple[str, dict[str, tuple[int, ...]]]] = []
    run, opened = Graph.run, Graph.__init__

    def opening(self: Any, path: Path, *more: Any, **options: Any) -> None:
        opened(self, path, *more, **options)
        self.stem = path.stem

    def running(self: Any, feeds: Any, *more: Any, **options: Any) -> Any:
        shapes = {name: tuple(value.shape() if callable(value.shape) else value.shape) for name, value in feeds.items()}
        seen.append((self.stem, shapes))
        return run(self, feeds, *more, **options)

    monkeypatch.setattr(Graph, "__init__", opening)
    monkeypatch.setattr(Graph, "run", running)
    return seen


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("images", [[1], [2, 1], [0]])
def test_all_that_the_runtime_feeds_lies_in_a_profile(
    toy: str, images: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_toy_bundle(TOYS[toy], tmp_path / "bundle")
    found = all_profiles(load_manifest(bundle), LIMITS)
    seen = fed(monkeypatch)
    model = VLM.load(bundle)
    pictures = [[picture(number) for number in range(count)] for count in images]
    model.generate(pictures, [model.chat("what is it ?", count) for count in images], max_new_tokens=4)

    assert {graph for graph, _ in seen} >= {"embed_tokens", *(segment.graph for segment in model.manifest.segments)}
    for graph, shapes in seen:
        assert any(holds(profile, shapes) for profile in found[graph]), (graph, shapes, found[graph])


def test_a_segment_has_a_profile_for_the_prompt_and_one_for_a_token(toy_bundle: Path) -> None:
    manifest = load_manifest(toy_bundle)
    prefill, decode = all_profiles(manifest, LIMITS)[manifest.segments[0].graph]

    assert (prefill.name, decode.name) == ("prefill", "decode")
    longest = 2 * manifest.images[0].keep_per_span + LIMITS.text
    past = longest + LIMITS.new_tokens - 1
    assert [shape[1] for shape in prefill.shapes["attention_mask"]][::2] == [1, longest]
    assert [shape[1] for shape in decode.shapes["attention_mask"]] == [2, past + 1, past + 2]
    assert [shape[1] for shape in decode.shapes["inputs_embeds"]] == [1, 1, 2]
    assert {shape[2] for name, three in prefill.shapes.items() if name.startswith("past") for shape in three} == {0}


def test_the_context_bounds_what_is_built_for(toy_bundle: Path) -> None:
    manifest = load_manifest(toy_bundle)
    context = manifest.generation.context
    _, decode = all_profiles(manifest, Limits(text=context, new_tokens=context))[manifest.segments[0].graph]

    assert decode.shapes["attention_mask"][1][1] == context + 1


@pytest.mark.parametrize("limits", [Limits(batch=0), Limits(new_tokens=-1)])
def test_limits_below_one_are_refused(toy_bundle: Path, limits: Limits) -> None:
    with pytest.raises(InputError, match="give 1 or more"):
        all_profiles(load_manifest(toy_bundle), limits)


def test_a_dimension_of_another_exporter_is_refused_by_name(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="'my_axis'"):
        profiles(load_manifest(toy_bundle), "embed_tokens", {"input_ids": ["batch_size", "my_axis"]}, LIMITS)
