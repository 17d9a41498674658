"""Every selector through a recipe on images of several views: exactly the budget, in order, each image by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import GRID, recipe
from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.errors import RecipeError
from vtc.facts.layout import Block, ImageLayout, shared_out
from vtc.facts.views import views_of, whole_views
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.plan.selectors import why_not
from vtc.recipe.selectors import ENCODER_SELECTORS
from vtc.selectors.globalcom2 import GlobalCom2
from vtc.selectors.hiprune import hierarchical
from vtc.selectors.hired import HiRED
from vtc.selectors.pooling import Pooling
from vtc.selectors.vscan import VScan
from vtc.visual_tokens import Reading, TextEmbeddings, VisualTokens, in_grids

VIEW = (GRID, GRID)
CROPS = Block((5, 8), views=(2, 2), offset=(2, 0), line_ends=True)
LAYOUTS = {
    "one view": ImageLayout((56, 56), VIEW, (Block(VIEW),)),
    "crops with padding": ImageLayout((70, 112), VIEW, (Block(VIEW), CROPS)),
    "one crop": ImageLayout((56, 28), VIEW, (Block(VIEW), Block((GRID, 2), offset=(0, 1), line_ends=True))),
    "tiles": ImageLayout((112, 168), VIEW, (Block(VIEW),) * 7, tiles=(2, 3)),
    "spans": ImageLayout((56, 168), VIEW, (Block(VIEW),), spans=3),
    "clip": ImageLayout((56, 56), VIEW, (Block(VIEW),) * 4, frames=4),
    "resampled": ImageLayout((112, 112), VIEW, (Block(VIEW), Block((6, 6), (2, 2), (0, 0), (8, 8), True)), ends=True),
}
TEXT = 5


def model_of(adapter: VLMAdapter, name: str, layout: ImageLayout, keep: int) -> CompressedModel:
    """A model that serves a layout with one selector."""
    torch.manual_seed(0)
    options = {"checkpoint": "pruner.safetensors"} if name == "learned" else {}
    stage = {"kind": "prune", "keep": keep, "selector": {"name": name, **options}, "positions": "original"}
    return apply_recipe(adapter.with_layout(layout), recipe(stage), from_state=True)


def encoded(model: CompressedModel, pixels: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Features and places of the kept tokens, asked with text (images, T, E)."""
    spans = model.plan.spans
    states = states.repeat_interleave(spans, dim=0)
    text = TextEmbeddings(states, torch.ones(states.shape[:2], dtype=torch.long)) if model.reads_text else None
    with torch.inference_mode():
        features, places = model.vision(pixels, text)
    return features, places


def batch(adapter: VLMAdapter, layout: ImageLayout, images: int) -> tuple[Tensor, Tensor]:
    """Pixels of images and questions about them."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, layout.views, 3, 56, 56, generator=generator)
    return pixels, torch.randn(images, TEXT, adapter.facts.decoder.width, generator=generator)


def allowed(adapter: VLMAdapter) -> list[tuple[str, str]]:
    """Selectors and the layouts on which a plan lets them choose."""
    return [
        (name, layout)
        for name, entry in ENCODER_SELECTORS.items()
        for layout in LAYOUTS
        if why_not(entry, adapter.with_layout(LAYOUTS[layout]).facts, pruned=False) is None
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENCODER_SELECTORS)
def test_exactly_the_budget_is_kept_on_every_layout(each_adapter: VLMAdapter, name: str, layout: str) -> None:
    served = LAYOUTS[layout]
    if (name, layout) not in allowed(each_adapter):
        with pytest.raises(RecipeError, match=f"{name} .*these work: random, uniform, pooling"):
            model_of(each_adapter, name, served, served.spans)
        return
    pixels, states = batch(each_adapter, served, 2)
    for keep in (1, 5, served.selectable // 2, served.selectable):
        model = model_of(each_adapter, name, served, served.spans * keep)
        features, places = encoded(model, pixels, states)
        assert features.shape == (2 * served.spans, keep, each_adapter.facts.decoder.width)
        assert features.isfinite().all()
        assert places.shape == features.shape[:2]
        assert (places.diff(dim=1) > 0).all()
        assert set(places.flatten().tolist()) <= set(served.places)
    # Of the budget in which all choices differ most.
    model = model_of(each_adapter, name, served, served.spans * 5)
    features, places = encoded(model, pixels, states)
    for image in range(2):
        alone = encoded(model, pixels[image : image + 1], states[image : image + 1])
        rows = slice(image * served.spans, (image + 1) * served.spans)
        assert torch.equal(alone[1], places[rows])
        torch.testing.assert_close(alone[0], features[rows], atol=1e-4, rtol=1e-4)


def test_what_each_layout_is_refused(adapter: VLMAdapter, siglip: VLMAdapter) -> None:
    """Guards the test above: only what cannot work is refused."""
    everything = {(name, layout) for name in ENCODER_SELECTORS for layout in LAYOUTS}
    several = set(LAYOUTS) - {"one view", "spans"}
    across = {"spans", "clip", "resampled"}
    refused = {("fopru", layout) for layout in several}
    refused |= {("evs", layout) for layout in LAYOUTS if layout != "clip"}
    refused |= {(name, layout) for name in ("hired", "globalcom2") for layout in across}
    assert everything - set(allowed(adapter)) == refused
    cls = ("cls_attention", "vispruner", "vscan", "prumerge", "turbo", "hired", "globalcom2")
    assert everything - set(allowed(siglip)) == refused | {(name, layout) for name in cls for layout in LAYOUTS}


@pytest.mark.parametrize("layout", ["crops with padding", "tiles", "spans", "clip"])
@pytest.mark.parametrize("name", [n for n, e in ENCODER_SELECTORS.items() if not e.text_aware and n != "learned"])
def test_exact_count_is_what_the_encoder_computes(adapter: VLMAdapter, name: str, layout: str) -> None:
    served = LAYOUTS[layout]
    if (name, layout) not in allowed(adapter):
        return
    model = model_of(adapter, name, served, 6 * served.spans)
    pixels, _ = batch(adapter, served, 1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.vision(pixels)
    parts = model.plan.flops_parts
    assert counter.get_total_flops() == parts["encoder"] + parts["projector"]


# Advice -------------------------------------------------------------------------------------------------------------


def advice(adapter: VLMAdapter, layout: ImageLayout, *stages: dict[str, Any]) -> list[list[str]]:
    """The selectors that the errors of a recipe name, one list an error."""
    with pytest.raises(RecipeError) as refused:
        plan(recipe(*stages), adapter.with_layout(layout).facts)
    return [line.rpartition("these work: ")[2].split(", ") for line in str(refused.value).splitlines()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("before", ["nothing", "filter", "prune"])
def test_selectors_that_an_error_names_do_work(each_adapter: VLMAdapter, layout: str, before: str) -> None:
    served = LAYOUTS[layout]
    stages: list[dict[str, Any]] = {
        "nothing": [],
        "filter": [{"kind": "frequency_filter", "keep": 0.25}],
        "prune": [{"kind": "prune", "keep": 0.5, "selector": "uniform"}],
    }[before]
    named: set[tuple[str, ...]] = set()
    for name in ENCODER_SELECTORS:
        options = {"checkpoint": "pruner.safetensors"} if name == "learned" else {}
        stage = {"kind": "prune", "keep": 0.25, "selector": {"name": name, **options}}
        try:
            plan(recipe(*stages, stage), each_adapter.with_image_options(served).facts)
        except RecipeError:
            named |= {tuple(names) for names in advice(each_adapter, served, *stages, stage)}
        else:
            named |= {(name,)}
    (everything,) = {names for names in named if len(names) > 1}
    assert {(name,) for name in everything} == {names for names in named if len(names) == 1}


def test_filtered_tiles_are_advised_what_filtered_tiles_can_take(siglip: VLMAdapter) -> None:
    stages = ({"kind": "frequency_filter", "keep": 0.25}, {"kind": "prune", "keep": 4, "selector": "cls_attention"})
    for names in advice(siglip, LAYOUTS["tiles"], *stages):
        assert "divprune" in names
        assert not {"visionzip", "hiprune", "evs", "fopru"} & set(names)


def test_frames_hold_a_recipe_to_clips_of_that_many(adapter: VLMAdapter) -> None:
    clip = adapter.with_layout(LAYOUTS["clip"]).facts
    stage = {"kind": "prune", "keep": 4, "selector": {"name": "evs", "frames": 4}}
    assert plan(recipe(stage), clip).keep == 4
    stage["selector"] = {"name": "evs", "frames": 8}
    with pytest.raises(RecipeError, match=r"stages.0.selector.frames: is 8, and the clip has 4"):
        plan(recipe(stage), clip)


# A full view and its crops ------------------------------------------------------------------------------------------


def test_tokens_of_crops_in_one_block_belong_to_the_crop_that_they_lie_in() -> None:
    views = views_of(LAYOUTS["crops with padding"])
    assert views is not None
    assert [len(views.tokens_of(view)) for view in range(5)] == [16, 8, 8, 12, 12]
    # Two of four rows of the upper crops are padding, and one of the lower ones.
    assert views.tokens_of(2) == [20, 21, 22, 23, 28, 29, 30, 31]
    assert [views.cells[place] for place in views.tokens_of(2)] == [4, 5, 6, 7, 12, 13, 14, 15]
    # What the picture shows is squashed into the full view: two of its five rows are upper crops, 1.6 of the view's 4.
    assert views.regions == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2


def test_tiles_come_before_the_full_view_where_the_layout_says_so() -> None:
    views = views_of(LAYOUTS["tiles"])
    assert views is not None
    assert views.tokens_of(0) == list(range(96, 112))
    assert views.tokens_of(1) == list(range(16))
    assert (views.crops, views.picture) == ((2, 3), (8, 12))
    assert views.cells[16:24] == (4, 5, 6, 7, 16, 17, 18, 19)
    assert views.regions == [0, 1, 1, 2, 0, 1, 1, 2, 3, 4, 4, 5, 3, 4, 4, 5]


def test_one_view_is_no_full_view_with_crops() -> None:
    assert views_of(LAYOUTS["one view"]) is None
    with pytest.raises(ValueError, match="7 views of an image here are not a full one and its crops"):
        views_of(ImageLayout((112, 168), VIEW, (Block(VIEW),) * 7))


def read(layout: ImageLayout, kind: str, layer: int, values: Tensor) -> VisualTokens:
    reading = Reading(kind, layer)  # type: ignore[arg-type]
    return in_grids(torch.zeros(1, layout.selectable, 1), layout.grids, layout.places, {reading: values})


@pytest.mark.parametrize("layout", ["crops with padding", "tiles"])
def test_hired_gives_the_budget_to_the_crops_that_are_looked_at(layout: str) -> None:
    served, views = LAYOUTS[layout], views_of(LAYOUTS[layout])
    assert views is not None
    looked_at = torch.zeros(1, served.selectable)
    last = [place for place, crop in zip(views.tokens_of(0), views.regions, strict=True) if crop == views.number - 1]
    looked_at[0, last] = 1.0
    # As many vote as the last crop's region has patches, so that nobody votes for another.
    selector = HiRED(0, 0, views, share=1 - len(last) / 16)
    chosen = selector.select(read(served, "cls_attention", 0, looked_at), 12)[0]
    owners = [views.owners[place] for place in chosen.tolist()]
    assert set(owners) == {0, views.number}
    # Beyond what a crop holds, the others get what is left.
    many = selector.select(read(served, "cls_attention", 0, looked_at), served.selectable - 1)
    assert many.unique().numel() == served.selectable - 1


def test_globalcom2_ranks_a_crop_by_what_the_full_view_thinks_of_it() -> None:
    views = views_of(LAYOUTS["crops with padding"])
    assert views is not None
    torch.manual_seed(0)
    thumbnail, own = torch.randn(1, 16), torch.full((1, 40), 0.01)
    scores = GlobalCom2(0, views).scores(torch.cat([thumbnail, own], dim=1), thumbnail, views)
    picture = torch.nn.functional.interpolate(thumbnail.reshape(1, 1, 4, 4), (5, 8), mode="bilinear").flatten()
    for crop in range(1, 5):
        places = views.tokens_of(crop)
        order = scores[0, places].argsort().tolist()
        assert order == picture[[views.cells[place] for place in places]].argsort().tolist()


def test_whole_views_are_crops_without_padding() -> None:
    one_block = views_of(ImageLayout((112, 112), VIEW, (Block(VIEW), Block((8, 8), views=(2, 2)))))
    assert one_block is not None
    apart = whole_views(VIEW, (2, 2))
    assert one_block.regions == apart.regions
    for view in range(5):
        cells = [[views.cells[place] for place in views.tokens_of(view)] for views in (one_block, apart)]
        assert cells[0] == cells[1]


# Grid by grid -------------------------------------------------------------------------------------------------------


def test_a_budget_is_shared_in_proportion() -> None:
    assert shared_out(10, [16, 40]) == [3, 7]
    assert shared_out(1, [16, 16, 16]) == [1, 0, 0]
    for sizes in ([16, 40], [3, 5, 7], [1, 1, 98]):
        for keep in range(sum(sizes) + 1):
            shares = shared_out(keep, sizes)
            assert sum(shares) == keep
            assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))


def test_pooling_pools_each_grid() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 56, 3)
    indices, pooled = Pooling().merge(in_grids(features, ((4, 4), (5, 8))), 14)
    parts = zip(((4, 4), (5, 8)), features.split([16, 40], dim=1), shared_out(14, [16, 40]), strict=True)
    alone = [Pooling().merge(in_grids(part, (grid,)), share) for grid, part, share in parts]
    assert indices[0].tolist() == [*alone[0][0][0].tolist(), *(16 + alone[1][0][0]).tolist()]
    torch.testing.assert_close(pooled, torch.cat([alone[0][1], alone[1][1]], dim=1))


@pytest.mark.parametrize("as_published", [False, True])
def test_neighbours_are_on_the_same_grid(as_published: bool) -> None:
    found, deep = torch.zeros(1, 56), torch.arange(56.0).flip(0)[None]
    found[0, 16] = 1.0  # the first patch of the second grid, whose rows have 8
    chosen = hierarchical(found, deep, ((4, 4), (5, 8)), 3, 5 / 3, as_published)[0].tolist()
    assert chosen == [16, 17, 24]


def test_windows_are_cut_grid_by_grid() -> None:
    served = LAYOUTS["clip"]
    scores = torch.arange(float(served.selectable))[None]
    readings = {Reading("cls_attention", 0): scores}
    given = in_grids(torch.zeros(1, served.selectable, 1), served.grids, served.places, readings)
    windows = [place // 16 * 4 + place % 16 // 8 * 2 + place % 4 // 2 for place in range(served.selectable)]
    chosen = VScan(0, 0, windows=2).select(given, 2 * 16)[0].tolist()
    # The local half of the budget is one token of every window.
    assert {windows[place] for place in chosen} == set(range(16))
