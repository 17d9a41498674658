"""The `project` stage: plans are exact, training begins well, what cannot be is refused, and bundles answer alike."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.recipe.texts import faults, with_stage
from tests.sizes import LLAVA_15
from tests.tiny import image, recipe
from vtc.compressed.build import apply_recipe, check_parts
from vtc.compressed.checkpoint import at_budgets
from vtc.compressed.model import CompressedModel
from vtc.errors import InputError, RecipeError
from vtc.facts.layout import Grid, single_view
from vtc.models import FAMILIES, load_adapter, read_facts
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny import write_tiny_llava
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.plan import check, plan
from vtc.projectors import build_projector
from vtc.projectors.deco import Deco
from vtc.projectors.pixel_shuffle import PixelShuffle
from vtc.recipe import RecipeSource
from vtc.recipe.projectors import PROJECTORS, DecoEntry, PixelShuffleEntry
from vtc.recipe.selectors import ENCODER_SELECTORS
from vtc.selectors.trained import TrainedPart, load_trained, save_trained, trained_part
from vtc.stages.project import Project
from vtc.training.job import new_part
from vtc.visual_tokens import in_grids

OPTIONS: dict[str, dict[str, Any]] = {"c_abstractor": {"hidden": 16, "depth": 2}, "llava_sp": {"inner": 8}}
KEEPS = {"llava_sp": 17}
GRID: Grid = (4, 4)


def stage(name: str, keep: int | None = None) -> dict[str, Any]:
    """A `project` stage of four tokens, or of as many as a projector makes."""
    options = OPTIONS.get(name, {})
    return {"kind": "project", "keep": keep or KEEPS.get(name, 4), "projector": {"name": name, **options}}


def projected(adapter: VLMAdapter, name: str) -> CompressedModel:
    """A model with a projector that training has not changed yet."""
    return apply_recipe(adapter, recipe(stage(name)), from_state=True)


@pytest.mark.parametrize("name", PROJECTORS)
def test_plan_counts_parameters_and_operations(name: str, adapter: VLMAdapter) -> None:
    model, prompt = projected(adapter, name), adapter.chat("what digit is red ?")
    text_tokens = len(adapter.tokenize([prompt], [1], 1)[0][0]) - 1
    made = plan(recipe(stage(name)), adapter.facts, text_tokens=text_tokens)
    part = trained_part(model.vision)
    own = 0 if part is None else sum(parameter.numel() for parameter in part.parameters())
    assert made.stages[0].parameters == own
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.generate([[image(0)]], [prompt], max_new_tokens=1)
    # A weighted sum of each square, and the gates of the whole image, PyTorch does not count or counts otherwise.
    assert made.flops["exact"] == pytest.approx(counter.get_total_flops(), rel=0.002)


@pytest.mark.parametrize("name", PROJECTORS)
def test_it_makes_exactly_what_the_plan_says(name: str, adapter: VLMAdapter) -> None:
    model = projected(adapter, name)
    prompts = [adapter.chat("what digit is red ?"), adapter.chat("how many ?")]
    features, places = model.features([[image(0)], [image(1)]], prompts)
    assert features.shape == (2, KEEPS.get(name, 4), adapter.facts.decoder.width)
    assert places.tolist() == [list(range(KEEPS.get(name, 4)))] * 2


@pytest.mark.parametrize("selector", [name for name, entry in ENCODER_SELECTORS.items() if entry.after_projector])
def test_a_selector_may_choose_among_the_new_tokens(selector: str, adapter: VLMAdapter) -> None:
    """It keeps some of them as they are, at their places on the new grid, and the plan counts what that takes."""
    pruning = {"kind": "prune", "keep": 2, "selector": selector, "positions": "original"}
    made = recipe(stage("deco"), pruning)
    whole, model = projected(adapter, "deco"), apply_recipe(adapter, made, from_state=True)
    prompt = adapter.chat("what digit is red ?")
    text_tokens = len(adapter.tokenize([prompt], [1], 1)[0][0]) - 1
    (tokens, _), (kept, places) = (one.features([[image(0)]], [prompt]) for one in (whole, model))
    assert places.shape == (1, 2)
    assert torch.equal(kept[0], tokens[0, places[0]])
    planned = plan(made, adapter.facts, text_tokens=text_tokens)
    assert (planned.keep, planned.position_span) == (2, 4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.generate([[image(0)]], [prompt], max_new_tokens=1)
    assert planned.flops["exact"] == pytest.approx(counter.get_total_flops(), rel=0.002)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("name", ["deco", "pixel_shuffle", "qmop", "mqt"])
def test_a_file_is_checked_before_any_weight_is_read(
    name: str, lora: dict[str, int] | None, adapter: VLMAdapter, tmp_path: Path
) -> None:
    outline, _ = type(adapter).outline(adapter.path)
    new, one = recipe(stage(name)), stage(name)
    save_trained(tmp_path / "p.safetensors", new_part(adapter, new, 0), "abc")
    one["projector"] |= {"checkpoint": "p.safetensors", "lora": lora}
    wanted = recipe(one).with_source(RecipeSource(directory=tmp_path))
    if lora is None:
        check_parts(outline, wanted, lambda: "abc")
    else:
        with pytest.raises(InputError, match="projector was trained for lora none, here it is rank 2, alpha 32"):
            check_parts(outline, wanted, lambda: "abc")


@torch.inference_mode()
def test_training_begins_with_the_models_own_projector(adapter: VLMAdapter) -> None:
    tokens = in_grids(torch.randn(2, prod(GRID), adapter.facts.token_width), [GRID])
    wanted = adapter.projector(tokens.features.reshape(2, 2, 2, 2, 2, -1).mean(dim=(2, 4)).flatten(1, 2))
    for entry, kind in ((DecoEntry(), Deco), (PixelShuffleEntry(), PixelShuffle)):
        made = build_projector(entry, adapter, GRID, 4, (0, 1))
        assert isinstance(made, kind)
        torch.testing.assert_close(made(tokens, adapter.projector), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([stage("deco"), stage("deco")], "stages.1: stages.0 has projected the tokens already"),
        ([{"kind": "prune", "keep": 8, "selector": "uniform"}, stage("deco")], "stages.1: needs a whole grid, and st"),
        (
            [{**stage("pixel_shuffle"), "keep": [4, 16]}],
            "stages.0.keep: pixel_shuffle is made for one number of tokens; give one, or take an elastic one: deco, t",
        ),
        (
            [stage("deco"), {"kind": "prune", "keep": 2, "selector": "cls_attention"}],
            "stages.1.selector: cls_attention looks at the encoder's tokens, and stages.0 has made others in the "
            "decoder's space; after a project these work: random, uniform, divprune, cdpruner",
        ),
        (
            [stage("deco"), {"kind": "prune", "keep": 2, "selector": "uniform"}, stage("m3")],
            "stages.2: stages.0 has projected the tokens already",
        ),
        (
            [stage("deco"), {"kind": "frequency_filter", "keep": 0.5}],
            "stages.1: frequency_filter happens before project; move it before stages.0",
        ),
    ],
)
def test_stages_that_cannot_go_together_are_named(stages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check(recipe(*stages))


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("tokenpacker", 100, "tokenpacker cannot make 100 tokens of 24x24; the nearest that it can: 64, 144"),
        ("deco", 577, "cannot keep 577 of 576 visual tokens"),
        ("mqt", 300, "mqt cannot make 300 tokens of 24x24; the nearest that it can: 256"),
        ("llava_sp", 64, "llava_sp cannot make 64 tokens of 24x24; the nearest that it can: 582"),
    ],
)
def test_a_number_that_it_cannot_make_is_named_with_the_nearest(name: str, keep: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        plan(recipe(stage(name, keep)), LLAVA_15)


@pytest.mark.parametrize("name", [name for name, entry in PROJECTORS.items() if entry.elastic])
def test_elastic_ones_have_the_same_parameters_at_every_budget(name: str, adapter: VLMAdapter) -> None:
    wanted = recipe({**stage(name), "keep": [1, 4, 16]})
    largest = apply_recipe(adapter, wanted, from_state=True)
    models = at_budgets(largest, wanted)
    prompts = [adapter.chat("what digit is red ?")]
    assert {keep: model.features([[image(0)]], prompts)[0].shape[1] for keep, model in models.items()} == {
        1: 1,
        4: 4,
        16: 16,
    }
    stored = {
        keep: {key: value.data_ptr() for key, value in model.trained.state_dict().items()}
        for keep, model in models.items()
    }
    assert stored[1] == stored[4] == stored[16]


def test_file_of_an_elastic_one_serves_every_budget_that_it_was_trained_for(
    adapter: VLMAdapter, tmp_path: Path
) -> None:
    def part(keep: int | list[int]) -> TrainedPart:
        found = trained_part(apply_recipe(adapter, recipe({**stage("mqt"), "keep": keep}), from_state=True))
        assert found is not None
        return found

    file = tmp_path / "projector.safetensors"
    save_trained(file, part([2, 4, 8]), "digest")
    for keep in (4, [2, 8]):
        load_trained(file, part(keep), "digest")
    with pytest.raises(InputError, match="was trained for keep 2,4,8, here it is 4,16; train it again"):
        load_trained(file, part([4, 16]), "digest")


def test_unknown_projectors_and_options_are_named() -> None:
    told = faults(with_stage("{kind: project, keep: 4, projector: dco}"))
    assert told == ["r.yaml:4: stages.0.projector: unknown projector 'dco', did you mean 'deco'?"]
    told = faults(with_stage("{kind: project, keep: 4, projector: {name: qmop, mixtur: all}}"))
    assert told == ["r.yaml:4: stages.0.projector.mixtur: unknown key, did you mean 'mixture'?"]


def test_one_that_reads_the_question_needs_it_after_the_image(
    adapter: VLMAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(adapter), "question_follows_image", False)
    with pytest.raises(InputError, match=r"stages.0: qmop reads the question .* take one that reads no question"):
        projected(adapter, "qmop")


REFUSED = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), "several encoder layers"),
    **dict.fromkeys(("llava_next", "llava_onevision"), "lose padding and are put together"),
}
"""Families that cannot have a projector, and what they are told."""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_them_or_says_why(family: str, tmp_path: Path) -> None:
    if family in TINY_FAMILIES:
        write_tiny(family, tmp_path / "m", encoder_layers=2, decoder_layers=2)
    else:
        write_tiny_llava(tmp_path / "m", grid=4, encoder_layers=2, decoder_layers=2)
    facts = read_facts(tmp_path / "m")
    if family in REFUSED:
        with pytest.raises(RecipeError, match=f"stages.0: .*{REFUSED[family]}"):
            plan(recipe(stage("deco")), facts)
        return
    model, layout = load_adapter(tmp_path / "m"), facts.layout
    whole, prompt = Image.new("RGB", facts.image_size[::-1]), model.chat("what is it ?")
    text_tokens = int((model.tokenize([prompt], [1], 1)[0] != model.image_token_id).sum())
    for name, kind in PROJECTORS.items():
        numbers = kind(**OPTIONS.get(name, {})).keeps(layout.view_grid)
        if not numbers:
            continue
        of_view = numbers[len(numbers) // 2]
        wanted = recipe(stage(name, of_view * layout.views))
        made, planned = apply_recipe(model, wanted, from_state=True), plan(wanted, facts, text_tokens=text_tokens)
        part = trained_part(made.vision)
        assert planned.stages[0].parameters == (0 if part is None else sum(one.numel() for one in part.parameters()))
        features, _ = made.features([[whole]], [prompt])
        assert features.shape == (layout.spans, of_view * layout.span_views, facts.decoder.width)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            made.generate([[whole]], [prompt], max_new_tokens=1)
        if name in ("deco", "pixel_shuffle"):  # of which PyTorch counts all
            assert planned.flops["exact"] == counter.get_total_flops()


@torch.inference_mode()
def test_each_view_is_projected_by_itself(adapter: VLMAdapter) -> None:
    tokens = in_grids(torch.randn(2, 3 * prod(GRID), adapter.facts.token_width), [GRID] * 3)
    projector = build_projector(DecoEntry(), adapter, GRID, 4, (0, 1))
    made = Project(projector, adapter, [(2, 2)] * 3, views=3)(tokens)
    assert made.grids == ((2, 2),) * 3
    for view, features in enumerate(tokens.features.split(prod(GRID), dim=1)):
        alone = projector(in_grids(features, [GRID]), adapter.projector)
        torch.testing.assert_close(made.features[:, 4 * view : 4 * view + 4], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("keep", "words"), [(10, "10 tokens cannot be shared equally by 3 views; give 9"), (15, "")])
def test_views_of_an_image_make_equally_many_tokens(keep: int, words: str) -> None:
    view = single_view((448, 448), (24, 24))
    facts = replace(LLAVA_15, layout=replace(view, blocks=view.blocks * 3))
    if words:
        with pytest.raises(RecipeError, match=words):
            plan(recipe(stage("deco", keep)), facts)
    else:
        made = plan(recipe(stage("deco", keep)), facts)
        assert made.stages[0].grids_out == ((1, 5),) * 3
    assert plan(recipe(stage("deco") | {"keep": 0.25}), facts).keep == 3 * 144
