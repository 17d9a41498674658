"""Every family: its own logits and answers without a recipe, and with one what a plain reference computes."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig

from tests.models.families import (
    CASES,
    Case,
    Checkpoints,
    compressed,
    every_case,
    every_family,
    masked_logits,
    prompts_of,
)
from tests.models.own import own_generate, own_inputs, own_logits, own_model
from vtc.models import FAMILIES, load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny import write_tiny_llava
from vtc.plan import plan
from vtc.recipe import NONE

KINDS = ["one", "two", "middle", "batch"]
CHOICES: dict[str, list[dict[str, Any]]] = {
    "prune": [{"kind": "prune", "keep": 0.4, "selector": "divprune", "positions": "original"}],
    "renumbered": [{"kind": "prune", "keep": 0.4, "selector": "uniform"}],
    "cut": [{"kind": "prune_in_decoder", "layer": 1, "keep": 0.5}],
    "cuts": [
        {"kind": "prune", "keep": 0.7, "selector": "uniform", "positions": "original"},
        {"kind": "prune_in_decoder", "layer": 3, "keep": 0.5, "selector": "fastv"},
    ],
    "exit": [{"kind": "visual_exit", "layer": 3}],
}
"""Recipes that only choose tokens."""
FILTER = [{"kind": "frequency_filter", "keep": 0.25}]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("families"))


def test_every_family_is_covered() -> None:
    assert {case.family for case in CASES} == set(FAMILIES) - {"llava"}


@every_case(*KINDS, own=True)
def test_null_recipe_gives_the_models_own_logits(checkpoints: Checkpoints, case: Case, kind: str) -> None:
    adapter, own = checkpoints.adapter(case), checkpoints.own(checkpoints.path(case.family))
    images, prompts = asked = prompts_of(adapter, kind)
    inputs = own_inputs(adapter.path, images, prompts, frames=case.frames > 1)
    model = compressed(adapter)
    ids, mask, pixels = model.inputs(*asked)
    assert ids.tolist() == inputs["input_ids"].tolist()
    with torch.inference_mode():
        ours, _ = model.prefill(ids, mask, pixels)
    torch.testing.assert_close(ours[:, -1], own_logits(own, inputs)[:, -1], atol=1e-5, rtol=1e-5)


@every_case("one", "batch", own=True)
def test_null_recipe_generates_what_the_model_generates(checkpoints: Checkpoints, case: Case, kind: str) -> None:
    adapter, own = checkpoints.adapter(case), checkpoints.own(checkpoints.path(case.family))
    images, prompts = prompts_of(adapter, kind)
    theirs = own_generate(own, own_inputs(adapter.path, images, prompts, frames=case.frames > 1), 32)
    assert [answer.token_ids for answer in compressed(adapter).generate(images, prompts, 32)] == theirs


SETTINGS: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "min_new_tokens": 2}
"""Generation settings, as a checkpoint may have them."""


@every_family()
def test_generation_settings_are_honoured_as_the_model_honours_them(
    checkpoints: Checkpoints, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.family == family)
    answers_follow_settings(checkpoints.adapter(case), checkpoints.own(checkpoints.path(family)), monkeypatch)


def test_generation_settings_are_honoured_by_llava_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_llava(tmp_path / "model", grid=4, encoder_layers=3, decoder_layers=4)
    answers_follow_settings(load_adapter(path), own_model(path), monkeypatch)


def answers_follow_settings(adapter: VLMAdapter, own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers with a penalty, two end tokens and other rules are those of the model's own ``generate()``."""
    images, prompts = prompts_of(adapter, "batch")
    inputs = own_inputs(adapter.path, images, prompts)

    def settings(**changes: Any) -> None:
        config: Any = GenerationConfig(pad_token_id=adapter.pad_token_id, **changes)  # type: ignore[no-untyped-call]
        for model in (own, adapter.model):
            monkeypatch.setattr(model, "generation_config", config)

    settings(eos_token_id=[-1], **SETTINGS | {"repetition_penalty": 1.0})
    plain = own_generate(own, inputs, 10)
    settings(eos_token_id=[-1], **SETTINGS)
    whole = own_generate(own, inputs, 10)
    assert whole != plain
    ends = sorted({whole[0][4], whole[1][6]})
    settings(eos_token_id=ends, **SETTINGS)
    theirs = own_generate(own, inputs, 10)
    assert [answer.token_ids for answer in compressed(adapter).generate(images, prompts, 10)] == theirs
    assert min(map(len, theirs)) < 10


@pytest.mark.parametrize("name", CHOICES)
@every_case("two", "batch")
def test_gathered_tokens_compute_what_masked_ones_do(
    checkpoints: Checkpoints, case: Case, kind: str, name: str
) -> None:
    adapter = checkpoints.adapter(case)
    model = compressed(adapter, *CHOICES[name])
    asked = prompts_of(adapter, kind)
    ids, mask, pixels = model.inputs(*asked)
    with torch.inference_mode():
        ours, state = model.prefill(ids, mask, pixels)
    torch.testing.assert_close(ours[:, -1], masked_logits(model, asked), atol=1e-4, rtol=1e-4)
    lengths_are_planned(model, ids, state)


def lengths_are_planned(model: Any, ids: torch.Tensor, state: Any) -> None:
    """Each segment's cache is as long as the plan says."""
    visual = ids == model.adapter.image_token_id
    images = visual.sum(dim=1) // (model.keep_per_span * model.plan.spans)
    text = ((ids != model.adapter.pad_token_id) & ~visual).sum(dim=1)
    for past, mask, segment in zip(state.past, state.masks, model.plan.segments, strict=True):
        assert mask.sum(dim=1).tolist() == (text + images * segment.visual_tokens).tolist()
        assert {key.shape[2] for key, _ in past} == {mask.shape[1]}


@every_case("one")
def test_frequency_filter_acts_on_every_grid(checkpoints: Checkpoints, case: Case, kind: str) -> None:
    adapter = checkpoints.adapter(case)
    model = compressed(adapter, *FILTER)
    stage = model.plan.stages[0]
    assert stage.grids_in == adapter.facts.layout.grids
    ids, mask, pixels = model.inputs(*prompts_of(adapter, kind))
    with torch.inference_mode():
        tokens = compressed(adapter).vision.tokens(pixels)
        filtered = model.vision.stages[0](tokens)
        _, state = model.prefill(ids, mask, pixels)
    start_in = start_out = 0
    for before, after in zip(stage.grids_in, stage.grids_out, strict=True):
        part = tokens.features[:, start_in : start_in + prod(before)].mean(dim=1)
        small = filtered.features[:, start_out : start_out + prod(after)].mean(dim=1)
        torch.testing.assert_close(small, part, atol=1e-5, rtol=1e-4)  # the mean of each grid is preserved
        start_in, start_out = start_in + prod(before), start_out + prod(after)
    assert filtered.features.shape[1] == start_out == model.keep_per_span
    lengths_are_planned(model, ids, state)


@every_case("one")
def test_exact_count_is_what_the_model_computes(checkpoints: Checkpoints, case: Case, kind: str) -> None:
    adapter = checkpoints.adapter(case)
    model = compressed(adapter)
    ids, mask, pixels = model.inputs(*prompts_of(adapter, kind))
    text = int((ids != adapter.image_token_id).sum())
    # PyTorch counts attention, and experts, only where they are plain matrix products.
    if adapter.facts.decoder.experts > 1:
        adapter.model.set_experts_implementation({"text_config": "batched_mm"})
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.prefill(ids, mask, pixels)
    adapter.set_decoder_attention("sdpa")
    expected = plan(NONE, adapter.facts, text_tokens=text)
    assert expected.flops["exact"] == counter.get_total_flops()
