"""Originals, compressed models, bundles and baselines are opened alike, and only what belongs together is compared."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.bundles import plan
from tests.runtime.nvidia import nvidia, write_engine_set
from tests.tiny import GRID, IMAGE, compressed, image
from vtc.cli.report import validate_tables
from vtc.data.datasets import Dataset, Item
from vtc.errors import InputError, VtcError
from vtc.evaluate.asking import Effort
from vtc.evaluate.baselines import BASELINES, RANDOM_DRAWS, baseline_keep, open_baselines
from vtc.evaluate.comparison import check_same_origin, open_comparison
from vtc.evaluate.contestants import compressed_contestant, layouts_of, original_of
from vtc.evaluate.validate import validate
from vtc.facts.layout import ANY_IMAGE, Block, ImageLayout, ImageOptions
from vtc.inputs.pixels import Picture, PixelSpec
from vtc.models.base import VLMAdapter
from vtc.runtime.options import RuntimeOptions

CPU = RuntimeOptions(provider="cpu")
PRUNE = {"kind": "prune", "keep": 4, "selector": "cls_attention"}


def items(count: int) -> tuple[Item, ...]:
    return tuple(
        Item(f"{n}", image(n), f"{n}", "what digit is red ?", ("three",), "digit", evidence=((0, 0, 9, 9),))
        for n in range(count)
    )


def test_baselines_spend_the_same_budget(adapter: VLMAdapter) -> None:
    found, left_out = open_baselines([adapter], BASELINES, keeps=[4], seed=0)
    assert left_out == {}
    assert {rival.name: rival.predictor.image_tokens for rival in found} == {
        "random": 4,
        "uniform": 4,
        "downsample": 4,
        "blind": 0,
    }


def test_without_a_saving_only_the_blind_floor_is_left(adapter: VLMAdapter) -> None:
    assert [rival.name for rival in open_baselines([adapter], BASELINES, keeps=[None], seed=0)[0]] == ["blind"]


def test_the_budget_of_a_plan_is_its_layer_average() -> None:
    assert baseline_keep(plan(keep=4)) == 4
    assert baseline_keep(plan(keep=16)) is None
    assert baseline_keep(replace(plan(keep=16), layer_average=8.0)) == 8
    assert baseline_keep(replace(plan(keep=1), layer_average=0.3)) == 1
    # Each of three runs of placeholders gets as many.
    assert baseline_keep(replace(plan(keep=6), layer_average=7.6, spans=3)) == 9
    assert baseline_keep(replace(plan(keep=3), layer_average=0.2, spans=3)) == 3


def test_random_shares_questions_out_by_their_ids(adapter: VLMAdapter) -> None:
    (random,), _ = open_baselines([adapter], ["random"], keeps=[4], seed=0)
    prompt = random.chat("what digit is red ?")
    draws = (random.predictor, *random.others)
    assert len({draw.score([[image(0)]], [prompt], [[5]])[0].tobytes() for draw in draws}) > RANDOM_DRAWS // 2
    turns = [random.turn(item) for item in items(64)]
    assert len(set(turns)) > RANDOM_DRAWS // 2
    assert [random.turn(item) for item in reversed(items(64))] == turns[::-1]


def test_the_null_recipe_is_the_original(adapter: VLMAdapter) -> None:
    original = original_of([adapter], "sha")
    null = compressed_contestant("null", compressed(adapter), "sha")
    data = Dataset("d", items(4))
    report = validate(original.contestant, null.contestant, [], data, effort=Effort(2, 4))
    assert report["fidelity"]["kld_mean"] == 0.0
    assert report["fidelity"]["answer_agreement"] == 1.0


def test_a_pruned_model_reports_its_evidence(adapter: VLMAdapter) -> None:
    original = original_of([adapter], "sha")
    pruned = compressed_contestant("pruned", compressed(adapter, PRUNE), "sha")
    rivals, _ = open_baselines([adapter], BASELINES, keeps=[4], seed=0)
    report = validate(original.contestant, pruned.contestant, rivals, Dataset("d", items(4)), effort=Effort(2, 4))
    assert report["results"]["pruned"]["evidence"]["recall_of_random"] == 0.25
    assert set(report["baselines"]) == set(BASELINES)


def test_tokens_after_a_filter_have_no_place(adapter: VLMAdapter) -> None:
    filtered = compressed(adapter, {"kind": "frequency_filter", "keep": 4})
    assert compressed_contestant("filtered", filtered, "sha").contestant.locator is None


def test_bundles_are_compared_with_bundles_without_the_checkpoint(original_bundle: Path, pruned_bundle: Path) -> None:
    field = open_comparison(str(pruned_bundle), str(original_bundle), BASELINES, 0, CPU)
    assert field.compressed is not None
    assert field.baselines == []
    assert (field.original.predictor.image_tokens, field.compressed.predictor.image_tokens) == (16, 3)


def test_engines_are_compared_with_engines(
    original_bundle: Path, pruned_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, pruned = (shutil.copytree(path, tmp_path / path.name) for path in (original_bundle, pruned_bundle))
    nvidia(monkeypatch)
    write_engine_set(original, library="tensorrt")
    engines = write_engine_set(pruned, library="tensorrt_rtx").rename(tmp_path / "engines")
    field = open_comparison(str(pruned), str(original), (), 0, RuntimeOptions(backend="tensorrt", engines=engines))
    assert field.compressed is not None
    predictors: list[Any] = [field.original.predictor, field.compressed.predictor]
    assert [predictor.provider for predictor in predictors] == ["tensorrt", "tensorrt_rtx"]


def test_a_model_made_from_another_checkpoint_is_refused(adapter: VLMAdapter) -> None:
    with pytest.raises(InputError, match="another checkpoint"):
        check_same_origin(
            original_of([adapter], "a" * 64), compressed_contestant("c", compressed(adapter, PRUNE), "b" * 64)
        )


def test_a_compressed_bundle_is_no_original(original_bundle: Path, pruned_bundle: Path) -> None:
    with pytest.raises(InputError, match="is compressed"):
        open_comparison(str(original_bundle), str(pruned_bundle), (), 0, CPU)


def test_nothing_to_compare_with_is_an_error(tmp_path: Path, original_bundle: Path) -> None:
    with pytest.raises(InputError, match="--against"):
        open_comparison(None, None, (), 0, CPU)
    with pytest.raises(VtcError, match="no such"):
        open_comparison(str(tmp_path / "missing"), str(original_bundle), (), 0, CPU)


TILES = ImageLayout((IMAGE, 2 * IMAGE), (GRID, GRID), (Block((GRID, GRID)),), spans=3)
CROPS = ImageLayout(
    (IMAGE, 2 * IMAGE), (GRID, GRID), (Block((GRID, GRID)), Block((GRID, 2 * GRID), views=(1, 2), line_ends=True))
)
TILED = PixelSpec(
    (Picture(resize=((IMAGE, 2 * IMAGE),), tiles=(1, 2)), Picture(resize=((IMAGE, IMAGE),))),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


def tiled(adapter: VLMAdapter, layout: ImageLayout) -> VLMAdapter:
    """The model for images in two tiles and a whole view."""
    served = adapter.with_layout(layout)
    served.pixels = TILED
    return served


@pytest.mark.parametrize("layout", [TILES, CROPS])
def test_models_of_several_views_are_compared_without_downsampling(adapter: VLMAdapter, layout: ImageLayout) -> None:
    served = tiled(adapter, layout)
    pruned = compressed_contestant("pruned", compressed(served, PRUNE | {"keep": 6}), "sha")
    assert pruned.contestant.locator is None
    assert pruned.contestant.predictor.image_tokens == 6
    rivals, left_out = open_baselines([served], BASELINES, pruned.keeps, 0)
    assert list(left_out) == ["downsample"]
    assert {rival.name: rival.predictor.image_tokens for rival in rivals} == {"random": 6, "uniform": 6, "blind": 0}
    report = validate(
        pruned.contestant, pruned.contestant, rivals, Dataset("d", items(3)), effort=Effort(2, 4), left_out=left_out
    )
    assert set(report["baselines"]) == {"random", "uniform", "blind"}
    (line,) = [part for part in validate_tables(report) if isinstance(part, str) and "downsample" in part]
    assert line == (
        "baseline downsample is left out: a smaller image does not make fewer tokens of llava as it is served here"
    )


def test_clips_are_refused_in_one_line(adapter: VLMAdapter) -> None:
    blocks = (Block((GRID, GRID)),) * 2
    clip = adapter.with_layout(ImageLayout((IMAGE, IMAGE), (GRID, GRID), blocks, frames=2))
    with pytest.raises(InputError, match="c: serves clips of 2 frames, and data sets"):
        compressed_contestant("c", compressed(clip, PRUNE), "sha")


def test_original_of_a_bundle_serves_what_the_bundle_was_made_for() -> None:
    image_options = {"image_size": [30, 40], "tiles": None, "frames": 1}
    for key in ("image_options", "serving"):  # the second until schema 3
        assert layouts_of({"model": {"name": "m", key: image_options}}) == [ImageOptions(image_size=(30, 40))]
    assert layouts_of({"model": {"name": "m"}}) == [ANY_IMAGE]
    both = [image_options, image_options | {"image_size": [40, 30]}]
    wanted = [ImageOptions(image_size=(30, 40)), ImageOptions(image_size=(40, 30))]
    assert layouts_of({"model": {"image_options": image_options, "layouts": both}}) == wanted
    # Version 0.1 wrote the first one's options only.
    assert layouts_of({"model": {"image_options": image_options}, "images": [{}, {"size": [40, 30]}]}) == wanted
