"""Bundles: what the manifest promises is checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.toy import Segment, make_toy, write_toy_bundle
from vtc.artifact import publish, staging_dir
from vtc.bundle.facts import Variant
from vtc.bundle.manifest import SCHEMA, load_manifest, write_bundle
from vtc.errors import BundleError
from vtc.inputs.generation import GenerationRules


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A toy bundle of two segments."""
    toy = make_toy(segments=(Segment((0, 1)), Segment((2,), "text")))
    return write_toy_bundle(toy, tmp_path / "bundle")


def rewritten(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another manifest, published as if it were right."""
    data = json.loads((bundle / "manifest.json").read_text())
    fields = {name: data[name] for name in data if name not in ("files", "digest")}
    change(fields)
    work = staging_dir(bundle)
    bundle.rename(work)
    return publish(work, bundle, fields)


def test_manifest_says_what_was_written(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    assert manifest.root == bundle
    assert manifest.images[0].keep_per_span == 3
    assert manifest.generation.eos_token_ids == (2,)
    assert [segment.sees for segment in manifest.segments] == ["all", "text"]
    assert manifest.segments[1].selector is not None
    assert manifest.segments[1].selector.kind == "gather"
    assert manifest.graph("vision_encoder", "fp32") == bundle / "onnx/vision_encoder.onnx"
    assert manifest.json("config.json")["model_type"] == "llava"


def test_sizes_are_compared_even_where_hashes_are_not(bundle: Path) -> None:
    graph = bundle / "onnx/embed_tokens.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(bytes(data))
    load_manifest(bundle, verify=False)
    with pytest.raises(BundleError, match=r"embed_tokens\.onnx has changed"):
        load_manifest(bundle)
    graph.write_bytes(bytes(data[:-1]))
    with pytest.raises(BundleError, match=r"embed_tokens\.onnx has changed"):
        load_manifest(bundle, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("segments"), "segments: Field required"),
        (lambda m: m["images"][0].update(keep_per_span="3"), r"images\.0\.keep_per_span: .*integer"),
        (lambda m: m["images"][0]["positions"].update(kind="any"), r"images\.0\.positions\.kind"),
        (lambda m: m.update(variants=[]), "names no precision"),
        (lambda m: m["variants"].append(m["variants"][0]), "names a variant twice"),
        (lambda m: m["variants"][0].update(name="fp32-ort"), "no name of fp32 graphs in the form portable"),
        (
            lambda m: m["variants"].append({"name": "q4-ort", "precision": "q4", "form": "ort"}),
            "has q4-ort graphs without q4 graphs",
        ),
        (lambda m: m["generation"].update(layers=2**31), "which is no number of a bundle's"),
        (lambda m: m["generation"].update(layers=2**31 - 1), "do not make up the decoder"),
        (lambda m: m["generation"].update(pad_token_id=10**30), "which is no number of a bundle's"),
        (lambda m: m["generation"].update(pad_token_id=-1), "a special token.s number is negative"),
        (lambda m: m["generation"].update(eos_token_ids=[]), "names no token that ends an answer"),
        (lambda m: m["images"][0].update(size=[2**30, 2]), "megapixels"),
        (lambda m: m["images"][0]["grids"].append([10**30, 1]), "which is no number of a bundle's"),
        (lambda m: m["images"][0]["positions"].update(time_step=1e308), "positions of no token"),
        (lambda m: m["images"][0]["pixels"].update(std=[1e-320, 1, 1]), "standard deviation"),
        (lambda m: m["images"][0]["pixels"].update(mean=[1e300, 1, 1]), "scale of no image"),
        (lambda m: m["images"][0]["pixels"].update(rescale_factor=0), "rescale factor"),
        (lambda m: m.update(opset=2**40), "which is no number of a bundle's"),
        *[(lambda m, k=key: m["model"].pop(k), "does not say what it was made of") for key in ("name", "sha256")],
        (lambda m: m.update(model={"name": ["a"]}), "does not say what it was made of"),
        (lambda m: m.update(recipe={"name": 3, "stages": []}), "does not say what it was made of"),
        (lambda m: m["recipe"].update(stages="x"), "does not say what it was made of"),
        (lambda m: m["variants"].append({"name": "fp16", "precision": "fp16"}), "names no fp16 graph 'vision_encoder'"),
        (lambda m: m["graphs"].pop("token_selector_1"), "names no fp32 graph 'token_selector_1'"),
        (lambda m: m["graphs"]["embed_tokens"].update(fp32="onnx/else.onnx"), "lists no hash of onnx/else.onnx"),
        (lambda m: m["graphs"]["embed_tokens"].update(fp32="../else.onnx"), r"lists no hash of \.\./else\.onnx"),
        (lambda m: m["segments"].pop(), "do not make up the decoder"),
        (lambda m: m["segments"][1].update(layers=[3]), "do not make up the decoder"),
        (lambda m: m["segments"][1].update(selector=None), "wrong selector"),
        (lambda m: m["segments"][1]["selector"].update(kind="merge"), "wrong selector"),
        (lambda m: m["segments"][0].update(sees="text"), "wrong selector"),
        (
            lambda m: m["segments"][0].update(step={"graph": "decoder_step_0", "rows": 1}),
            "names no fp32 graph 'decoder_step_0'",
        ),
        (lambda m: m["segments"][0].update(step={"graph": "embed_tokens", "rows": 0}), "for steps of no rows"),
        (lambda m: m.update(schema=99), "newer vtc"),
        (lambda m: m["generation"]["rules"].update(repetition_penalty=0.0), r"generation\.rules: .*a number above 0"),
        (lambda m: m["generation"]["rules"].update(suppress_tokens=["a"]), r"generation\.rules\.suppress_tokens"),
        (lambda m: m.update(kind="compressed"), "is a 'compressed', not a bundle; `vtc export` makes a bundle of it"),
    ],
)
def test_manifest_that_does_not_add_up_is_refused_in_one_line(bundle: Path, change: Any, message: str) -> None:
    rewritten(bundle, change)
    with pytest.raises(BundleError, match=message) as refused:
        load_manifest(bundle)
    assert "\n" not in str(refused.value)


def test_files_are_found_only_where_they_are_listed(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    with pytest.raises(BundleError, match=r"holds no other\.json"):
        manifest.file("other.json")
    rewritten(bundle, lambda m: None)
    (staging_dir(bundle)).mkdir()
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        load_manifest(staging_dir(bundle))


def test_manifest_may_say_more_than_this_version_reads(bundle: Path) -> None:
    rewritten(bundle, lambda m: m.update(remark="made on a Tuesday"))
    load_manifest(bundle)


def test_write_bundle_fills_in_kind_and_schema(bundle: Path, tmp_path: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    work = staging_dir(tmp_path / "copy")
    bundle.rename(work)
    fields = {name: data[name] for name in data if name not in ("files", "digest", "kind", "schema")}
    assert load_manifest(write_bundle(work, tmp_path / "copy", fields)).schema == SCHEMA


def without_variants(manifest: dict[str, Any]) -> None:
    """Take schema 6's words out of a manifest."""
    manifest["precisions"] = [one["precision"] for one in manifest.pop("variants")]


@pytest.mark.parametrize("shrunk", [False, True])
def test_bundle_of_schema_3_is_read_in_the_words_of_today(bundle: Path, shrunk: bool) -> None:
    """Of schema 3, a smaller grid in place of a grid says that tokens have lost their places."""
    images = load_manifest(bundle).images

    def older(manifest: dict[str, Any]) -> None:
        stage = {"kind": "k", "grids_in": [[4, 4]], "grids_out": [[2, 2] if shrunk else [4, 4]]}
        (served,) = manifest["images"]
        for name in ("tokens", "keep", "segment_tokens"):
            served[name] = served.pop(f"{name}_per_span")
        del manifest["has_places"]
        without_variants(manifest)
        manifest.update(schema=3, plan={"stages": [stage]})

    manifest = load_manifest(rewritten(bundle, older))
    assert manifest.has_places != shrunk
    assert manifest.images == images


def test_precisions_of_schema_5_are_variants(bundle: Path) -> None:
    def older(manifest: dict[str, Any]) -> None:
        without_variants(manifest)
        manifest.update(schema=5)

    manifest = load_manifest(rewritten(bundle, older))
    assert manifest.variants == (Variant("fp32", "fp32"),)
    assert manifest.precisions == ("fp32",)


def test_a_variant_has_its_own_graphs_and_the_portable_ones_for_the_rest(bundle: Path) -> None:
    (bundle / "onnx/other.onnx").write_bytes((bundle / "onnx/decoder_segment_0.onnx").read_bytes())

    def optimised(manifest: dict[str, Any]) -> None:
        manifest["variants"].append({"name": "fp32-ort", "precision": "fp32", "form": "ort"})
        manifest["graphs"]["decoder_segment_0"]["fp32-ort"] = "onnx/other.onnx"

    manifest = load_manifest(rewritten(bundle, optimised))
    assert manifest.precisions == ("fp32",)
    assert manifest.graph("decoder_segment_0", "fp32-ort").name == "other.onnx"
    assert manifest.graph("embed_tokens", "fp32-ort").name == "embed_tokens.onnx"
    assert manifest.graph_bytes("fp32-ort") == manifest.graph_bytes("fp32")
    with pytest.raises(BundleError, match="names no fp16-ort graph 'embed_tokens'"):
        manifest.graph("embed_tokens", "fp16-ort")


def test_bundle_of_an_older_schema_is_refused_with_what_to_do(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"older vtc \(schema 2\); export the bundle again"):
        load_manifest(rewritten(bundle, lambda manifest: manifest.update(schema=2)))


@pytest.mark.parametrize("schema", [3, 4])
def test_an_older_bundle_has_the_rules_of_the_settings_that_lie_in_it(bundle: Path, schema: int) -> None:
    def older(manifest: dict[str, Any]) -> None:
        del manifest["generation"]["rules"]
        without_variants(manifest)
        manifest.update(schema=schema)
        if schema == 3:
            del manifest["has_places"]
            manifest["plan"] = {"stages": []}
            for name in ("tokens", "keep", "segment_tokens"):
                manifest["images"][0][name] = manifest["images"][0].pop(f"{name}_per_span")

    settings = bundle / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": 2, "repetition_penalty": 1.25}))
    assert load_manifest(rewritten(bundle, older)).generation.rules == GenerationRules(repetition_penalty=1.25)
    settings.write_text(json.dumps({"num_beams": 4}))
    with pytest.raises(BundleError, match=r"num_beams 4 is not served: .*; then export it again"):
        load_manifest(rewritten(bundle, lambda manifest: manifest.update(schema=4)))
    settings.write_text("[")
    with pytest.raises(BundleError, match=r"generation_config\.json: cannot be read"):
        load_manifest(rewritten(bundle, lambda manifest: manifest.update(schema=4)))


def test_quantised_precisions_of_schema_5_say_today_that_they_compute_in_float16(bundle: Path) -> None:
    names = {"int4": "q4f16", "int8": "q8f16", "int8-static": "int8-static"}

    def older(manifest: dict[str, Any]) -> None:
        manifest.update(schema=5, precisions=list(names), parity={name: {"samples": 3} for name in names})
        for graph, paths in manifest["graphs"].items():
            (path,) = paths.values()
            manifest["graphs"][graph] = dict.fromkeys(names, path)

    manifest = load_manifest(rewritten(bundle, older))
    assert manifest.precisions == tuple(names.values())
    assert list(manifest.parity) == list(names.values())
    assert all(list(paths) == list(names.values()) for paths in manifest.graphs.values())
