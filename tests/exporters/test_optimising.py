"""Optimised variants answer as the portable graphs do, share their weights, and keep their cache in place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import optimising
from exporters.optimising import optimise_bundle, variants_for
from exporters.variants import NAMES_OF_VARIANTS, wanted_variants
from tests.exporters.conftest import Exported, exports_of
from tests.tiny import write_checkpoint
from vtc.bundle.facts import Variant
from vtc.bundle.manifest import load_manifest
from vtc.errors import BundleError, InputError, ParityError
from vtc.models import load_adapter
from vtc.models.random.shapes import TINY
from vtc.runtime.onnxruntime.in_place import InPlacePast
from vtc.runtime.past import GrowingPast
from vtc.runtime.vlm import VLM

pytestmark = pytest.mark.xdist_group("optimised")  # bundles are made once for all tests here

Prompts = tuple[list[list[Any]], list[str]]
WIDE = replace(TINY, decoder=replace(TINY.decoder, width=64))
"""Heads of 16 numbers, a multiple of 8, which ONNX Runtime's attention asks for."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny model with wider heads by a recipe."""
    path = write_checkpoint(tmp_path_factory.mktemp("models") / "wide", like=WIDE)
    return exports_of(load_adapter(path), tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("name", ["none", "visual_only", "learnpruner", "cuts"])
def test_optimised_bundle_answers_as_the_model(exported: Exported, prompts: Prompts, tmp_path: Path, name: str) -> None:
    wanted, path = exported(name)
    (agreement,) = optimise_bundle(load_manifest(path), ["fp32-ort"], tmp_path / "bundle", samples=1).values()
    assert (agreement.against, agreement.samples, agreement.greedy_match) == ("fp32", 1, 1.0)
    bundle = VLM.load(tmp_path / "bundle", provider="cpu")
    assert (bundle.variant, bundle.precision) == ("fp32-ort", "fp32")
    answers = wanted.model.generate(*prompts, 8)
    # Together, with left padding, and alone.
    assert [g.token_ids for g in bundle.generate(*prompts, 8)] == [g.token_ids for g in answers]
    for group, text, answer in zip(*prompts, answers, strict=True):
        assert bundle.generate([group], [text], 8)[0].token_ids == answer.token_ids
    forced = [[*answer.token_ids, 1] for answer in answers]
    for ours, theirs in zip(bundle.score(*prompts, forced), wanted.model.score(*prompts, forced), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.fixture
def optimised(exported: Exported, tmp_path: Path) -> Path:
    """The tiny model with a cut inside the decoder, and its variant for ONNX Runtime."""
    optimise_bundle(load_manifest(exported("learnpruner")[1]), ["fp32-ort"], tmp_path / "bundle", samples=1)
    return tmp_path / "bundle"


def test_cache_stays_where_it_is(optimised: Path, prompts: Prompts) -> None:
    running = VLM.load(optimised, provider="cpu").start(*prompts, 12)
    pasts = running._cache.past
    assert pasts
    assert all(isinstance(past, InPlacePast) for past in pasts)

    def addresses() -> list[list[int]]:
        return [[tensor.data_ptr() for tensor in past.tensors] for past in pasts]  # type: ignore[attr-defined]

    before, lengths, size = addresses(), [past.length for past in pasts], running._cache.bytes
    steps = sum(1 for _ in running)
    assert steps > 2
    assert addresses() == before
    assert [past.length for past in pasts] == [length + steps - 1 for length in lengths]
    assert running._cache.bytes > size


def test_sizes_are_those_of_a_growing_cache(optimised: Path, prompts: Prompts) -> None:
    ours, theirs = (
        VLM.load(optimised, provider="cpu", precision=name).generate(*prompts, 4)[0].timings
        for name in ("fp32-ort", "fp32-portable")
    )
    assert (ours.kv_bytes, ours.segment_lengths) == (theirs.kv_bytes, theirs.segment_lengths)


def test_a_step_beyond_the_room_is_refused(optimised: Path, prompts: Prompts) -> None:
    model = VLM.load(optimised, provider="cpu")
    images, texts = prompts
    _, batch = model.inputs(images[:1], texts[:1], 2)
    cache = model.prefill(batch).cache
    token = np.array([3], dtype=np.int64)
    model.step(token, cache)
    model.step(token, cache)
    with pytest.raises(InputError, match=r"has room for \d+ tokens, which are there; ask for a longer answer"):
        model.step(token, cache)


def test_weights_are_stored_once(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights lie beside the portable graph, and the optimised one refers to them there."""
    path = shutil.copytree(exported("cls")[1], tmp_path / "bundle")
    graph = path / "onnx" / "decoder_model_merged.onnx"
    model = onnx.load(graph)
    onnx.save(model, graph, save_as_external_data=True, location=f"{graph.name}_data", size_threshold=256)
    sealed = load_again(path)
    before = sealed.graph_bytes("fp32")
    optimise_bundle(sealed, ["fp32-ort"], path, samples=1)
    manifest = load_manifest(path)
    assert set(manifest.graph_files("decoder_model_merged", "fp32-ort")) == {
        "onnx/decoder_model_merged_ort.onnx",
        "onnx/decoder_model_merged.onnx_data",
    }
    assert manifest.graph_bytes("fp32-ort") < 1.1 * before
    assert VLM.load(path, provider="cpu").variant == "fp32-ort"


def load_again(path: Path) -> Any:
    """The manifest of a bundle whose files have changed, as if they were right."""
    from tests.bundle.test_manifest import rewritten

    return load_manifest(rewritten(path, lambda manifest: None))


def test_optimising_again_changes_nothing(optimised: Path) -> None:
    before = json.loads((optimised / "manifest.json").read_text())
    optimise_bundle(load_manifest(optimised), ["fp32-ort"], optimised, samples=1)
    assert json.loads((optimised / "manifest.json").read_text()) == before


def test_variant_that_computes_something_else_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(name: str, paths: Any, progress: Any) -> Any:
        found = optimise(name, paths, progress)
        path = found.paths["decoder_model_merged"]
        model = onnx.load(path)
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "SkipSimplifiedLayerNormalization" and attribute.name == "epsilon":
                    attribute.f = 10.0
        onnx.save(model, path)
        return found

    optimise = optimising.optimise
    monkeypatch.setattr(optimising, "optimise", wrong)
    with pytest.raises(ParityError, match=r"fp32-ort graphs differ from fp32's: logits by .*; nothing was written"):
        optimise_bundle(load_manifest(exported("none")[1]), ["fp32-ort"], tmp_path / "bundle", samples=1)
    assert not (tmp_path / "bundle").exists()


def test_refusals(exported: Exported, tmp_path: Path) -> None:
    manifest = load_manifest(exported("cls")[1])
    with pytest.raises(InputError, match="holds no q4 graphs"):
        optimise_bundle(manifest, ["q4-ort"], tmp_path / "bundle")
    with pytest.raises(InputError, match="fp32 is a precision, which only vtc export writes"):
        optimise_bundle(manifest, ["fp32"], tmp_path / "bundle")
    with pytest.raises(InputError, match=r"'fp32-fast' is not known; variants: fp32, fp32-ort"):
        optimise_bundle(manifest, ["fp32-fast"], tmp_path / "bundle")
    rounding = replace(manifest, variants=(*manifest.variants, Variant("q4-static", "q4-static")))
    with pytest.raises(InputError, match=r"q4-static-ort rounds activations, .*; give --variant q4-static-ort to vtc"):
        optimise_bundle(rounding, ["q4-static-ort"], tmp_path / "bundle")
    path = shutil.copytree(exported("cls")[1], tmp_path / "engines")
    (path / "engines").mkdir()
    with pytest.raises(BundleError, match=r"holds engines, .*give another directory \(-o\)"):
        optimise_bundle(load_manifest(path), ["fp32-ort"], path)
    assert variants_for(manifest, "cpu") == ["fp32-ort"]
    assert variants_for(manifest, "cuda") == ["fp32-ort"]


def test_variants_bring_their_precision() -> None:
    assert wanted_variants(["q4-ort", "fp16", "q4-ort"]) == (["q4", "fp16"], ["q4-ort"])
    assert {"bf16-ort", "int8-static-ort", "fp8-opset23"}.isdisjoint(NAMES_OF_VARIANTS)


def test_growing_caches_are_kept_for_portable_graphs(exported: Exported, prompts: Prompts) -> None:
    model = VLM.load(exported("learnpruner")[1], provider="cpu")
    _, batch = model.inputs(*prompts, 2)
    assert all(isinstance(past, GrowingPast) for past in model.prefill(batch).cache.past)
